package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/disco"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// needs says what the map and the flags must offer for a scenario to make sense.
type needs struct {
	regions int
	nodes   int // in one region
	meshKey bool
	homes   bool
}

func (n needs) unmet(e *env) string {
	most := 0
	for _, r := range e.regions {
		most = max(most, len(r.Nodes))
	}
	switch {
	case len(e.regions) < n.regions:
		return fmt.Sprintf("needs %d regions, the map has %d", n.regions, len(e.regions))
	case most < n.nodes:
		return fmt.Sprintf("needs a region with %d nodes", n.nodes)
	case n.meshKey && e.meshKey.IsZero():
		return "needs -mesh-key-file"
	case n.homes && (e.listed[e.home] == nil || e.listed[e.peerHome] == nil):
		return "needs -home and -peer-home, both regions of the map"
	}
	return ""
}

type scenario struct {
	name  string
	what  string
	needs needs
	run   func(*trial) error
	// limit replaces that of -timeout where that is shorter: for what takes long by itself.
	limit time.Duration
	// long is not part of `all`, unless -long is given.
	long bool
	// apart is never part of `all`.
	apart bool
}

// burstLen is what a stock server's queue for one client holds: none of that many packets may be lost.
const burstLen = 32

// discoLenMin is the shortest payload that counts as disco: magic, sender key, nonce.
const discoLenMin = len(disco.Magic) + 32 + 24

var scenarios = []scenario{
	{name: "one-node", what: "two clients of one node exchange packets, both ways, none doubled", run: oneNode},
	{name: "one-region", what: "the same through two nodes of one region", needs: needs{nodes: 2}, run: oneRegion},
	{name: "two-regions", what: "the same through nodes of different regions, every pair of regions", needs: needs{regions: 2}, run: twoRegions},
	{name: "in-order", what: "a burst of small packets arrives whole and in order, on one node and across regions", run: inOrder},
	{name: "bulk", what: "100 MB through two nodes of a region, 30 packets in flight, in order, none lost", needs: needs{nodes: 2}, run: bulk, limit: 5 * time.Minute},
	{name: "queuing-delay", what: "small packets at a steady pace, through one node and two: none lost, none late", needs: needs{nodes: 2}, run: queuingDelay, limit: time.Minute},
	{name: "raw-upgrade", what: "without fast start: the exact 101 block, then a greeting of 40 bytes", run: rawUpgrade},
	{name: "fast-start", what: "server key comes from the MetaCert over TLS 1.3; the first frame is the greeting, no HTTP answer", run: fastStart},
	{name: "meta-cert", what: "MetaCert: last in the chain, name, serial, one extension, no key identifiers", run: metaCertExact},
	{name: "pinned-certificate", what: "a client that knows only the certificate's hash is content, MetaCert or not", run: pinned},
	{name: "server-info", what: "ServerInfo comes first, opens with the client's key, says version 2 and nothing else", run: serverInfo},
	{name: "client-info-json", what: "which JSON of a login is taken: case, unknown fields, wrong types, mesh keys", run: clientInfoJSON},
	{name: "weak-keys", what: "the zero key and keys of low order log nobody in", run: weakKeysRefused},
	{name: "size-rules", what: "each frame's limits, one byte inside and one outside", run: sizeRulesHold},
	{name: "unprivileged-frames", what: "mesh frames without the mesh key end the connection and do nothing", run: unprivilegedFrames},
	{name: "ping", what: "ping is answered", run: ping},
	{name: "note-preferred", what: "home region noted, revoked and noted again without harm", run: notePreferred},
	{name: "packet-64k", what: "the largest packet, 65536 bytes, arrives", run: packet64k},
	{name: "packet-empty", what: "a packet of no bytes arrives", run: packetEmpty},
	{name: "packet-to-self", what: "a packet to one's own key comes back", run: packetToSelf},
	{name: "peer-gone-not-here", what: "a disco packet to an absent key is answered; an ordinary one is not", run: peerGoneNotHere},
	{name: "not-here-limit", what: "ten quick disco packets to nobody are answered three times", run: notHereLimit},
	{name: "peer-gone-on-leave", what: "whoever heard from a client learns when it leaves its node", run: peerGoneOnLeave},
	{name: "peer-gone-twice", what: "and learns it again after the client's second visit", run: peerGoneTwice},
	{name: "peer-gone-across-regions", what: "the same across regions", needs: needs{regions: 2}, run: peerGoneAcrossRegions},
	{name: "duplicate-key", what: "of several connections of a key the newest, then the last writer gets the packets; survivors take over", run: duplicateKey},
	{name: "mesh-watch", what: "a mesh login watches: itself in the flood, 51-byte present, 33-byte gone", needs: needs{meshKey: true}, run: meshWatch},
	{name: "mesh-watch-duplicates", what: "each connection of a key is told, its departure once", needs: needs{meshKey: true}, run: watchDuplicates},
	{name: "mesh-forward", what: "a forwarded packet arrives with the source it names", needs: needs{meshKey: true}, run: meshForward},
	{name: "mesh-close-peer", what: "a mesh login closes another client's connection", needs: needs{meshKey: true}, run: meshClosePeer},
	{name: "mesh-close-peer-all", what: "and all connections of a key", needs: needs{meshKey: true}, run: meshClosePeerAll},
	{name: "mesh-wrong-key", what: "a login with another mesh key is an ordinary client: watching ends the connection", run: meshWrongKey},
	{name: "idle", what: "a client that says nothing stays connected for more than five minutes", run: idle, limit: 7 * time.Minute, long: true},
	{name: "talk", what: "one of two clients in processes of their own, each told the other's key by `peer KEY` on standard input", needs: needs{homes: true}, run: talk, limit: time.Minute, apart: true},
	{name: "stay", what: "one of two such clients of one region, which stays connected and sends until the end of standard input, and says what came", needs: needs{homes: true}, run: stay, limit: 2 * time.Minute, apart: true},
}

func (t *trial) node(region int) *tailcfg.DERPNode { return t.regions[region].Nodes[0] }

// pair logs a client in at each of two nodes and waits the settle time.
func (t *trial) pair(at1, at2 *tailcfg.DERPNode) (a, b *stock, err error) {
	if a, err = t.connect(at1); err != nil {
		return nil, nil, err
	}
	if b, err = t.connect(at2); err != nil {
		return nil, nil, err
	}
	return a, b, t.pause()
}

// exchange sends one packet each way, without a second try, and checks that nothing else arrived.
func (t *trial) exchange(at1, at2 *tailcfg.DERPNode) error {
	a, b, err := t.pair(at1, at2)
	if err != nil {
		return err
	}
	for _, way := range []struct {
		from, to *stock
		name     string
	}{{a, b, at1.Name + " -> " + at2.Name}, {b, a, at2.Name + " -> " + at1.Name}} {
		payload := []byte("packet " + way.name)
		if err := way.from.send(way.to.public, payload); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		if err := expectPacket(t.ctx, way.to.receiver, way.from.public, payload); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	return errors.Join(t.quiet(a), t.quiet(b))
}

func oneNode(t *trial) error { return t.exchange(t.node(0), t.node(0)) }

func oneRegion(t *trial) error {
	for _, r := range t.regions {
		for i := 1; i < len(r.Nodes); i++ {
			if err := t.exchange(r.Nodes[0], r.Nodes[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func twoRegions(t *trial) error {
	for i := range t.regions {
		for j := range i {
			if err := t.exchange(t.node(j), t.node(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func inOrder(t *trial) error {
	if err := t.burst(t.node(0), t.node(0)); err != nil || len(t.regions) < 2 {
		return err
	}
	return t.burst(t.node(0), t.node(1))
}

func (t *trial) burst(at1, at2 *tailcfg.DERPNode) error {
	a, b, err := t.pair(at1, at2)
	if err != nil {
		return err
	}
	for i := range burstLen {
		if err := a.send(b.public, fmt.Appendf(nil, "packet %d", i)); err != nil {
			return err
		}
	}
	for i := range burstLen {
		if err := expectPacket(t.ctx, b.receiver, a.public, fmt.Appendf(nil, "packet %d", i)); err != nil {
			return fmt.Errorf("packet %d of %d, %s -> %s: %w", i, burstLen, at1.Name, at2.Name, err)
		}
	}
	return t.quiet(b)
}

func fastStart(t *trial) error {
	// The whole stock client finds the key.
	whole, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	state, ok := whole.TLSConnectionState()
	if !ok {
		return errors.New("not connected over TLS")
	}
	named, version := metaCert(state.PeerCertificates)
	if version != derp.ProtocolVersion || named != whole.ServerPublicKey() {
		return fmt.Errorf("MetaCert names %v version %d, the client talks to %v", named, version, whole.ServerPublicKey())
	}
	// And on the wire: ClientInfo is sent before a byte came back, and the first bytes are a frame.
	c, err := t.connectTapped(t.node(0))
	if err != nil {
		return err
	}
	if c.readAtLogin != 0 {
		return fmt.Errorf("%d bytes were received before ClientInfo was sent", c.readAtLogin)
	}
	if first, _ := c.tap.first(); first != (frameSeen{derp.FrameServerKey, 40}) {
		return fmt.Errorf("first frame is type %#x of %d bytes, want the greeting of 40", first.typ, first.length)
	}
	if c.metaKey != named {
		return fmt.Errorf("server key changed from %v to %v between two connections", named, c.metaKey)
	}
	return nil
}

func ping(t *trial) error {
	c, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	if err := c.Ping(t.ctx); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return t.quiet(c)
}

func notePreferred(t *trial) error {
	c, err := t.connectWith(t.node(0), key.NewNode(), func(c *derphttp.Client) { c.NotePreferred(true) })
	if err != nil {
		return err
	}
	c.NotePreferred(false)
	c.NotePreferred(true)
	if err := c.Ping(t.ctx); err != nil {
		return fmt.Errorf("ping after three notes: %w", err)
	}
	return t.quiet(c)
}

// carries sends one payload between two clients of one node, and across regions where there are two.
func (t *trial) carries(payload []byte) error {
	for _, far := range t.regions[:min(2, len(t.regions))] {
		a, b, err := t.pair(t.node(0), far.Nodes[0])
		if err != nil {
			return err
		}
		if err := a.send(b.public, payload); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, b.receiver, a.public, payload); err != nil {
			return fmt.Errorf("%s -> %s: %w", t.node(0).Name, far.Nodes[0].Name, err)
		}
	}
	return nil
}

func packet64k(t *trial) error {
	payload := make([]byte, derp.MaxPacketSize)
	if _, err := rand.Read(payload); err != nil {
		return err
	}
	return t.carries(payload)
}

func packetEmpty(t *trial) error { return t.carries([]byte{}) }

func packetToSelf(t *trial) error {
	c, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	return t.quiet(c)
}

func peerGoneNotHere(t *trial) error {
	c, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	absent := key.NewNode().Public()
	// An ordinary packet to nobody is dropped in silence: the next message is that of `quiet`.
	if err := c.send(absent, []byte("to nobody")); err != nil {
		return err
	}
	if err := t.quiet(c); err != nil {
		return err
	}
	shaped := make([]byte, discoLenMin)
	copy(shaped, disco.Magic)
	if err := c.send(absent, shaped); err != nil {
		return err
	}
	return t.expectGone(c.receiver, absent, derp.PeerGoneReasonNotHere)
}

func (t *trial) expectGone(r *receiver, who key.NodePublic, reason derp.PeerGoneReasonType) error {
	gone, err := expect[derp.PeerGoneMessage](t.ctx, r)
	if err != nil {
		return err
	}
	if gone.Peer != who || gone.Reason != reason {
		return fmt.Errorf("peer gone %v reason %#x, want %v reason %#x", gone.Peer.ShortString(), gone.Reason, who.ShortString(), reason)
	}
	return nil
}

func peerGoneOnLeave(t *trial) error { return t.leave(t.node(0), t.node(0)) }

func peerGoneAcrossRegions(t *trial) error { return t.leave(t.node(0), t.node(1)) }

func (t *trial) leave(at1, at2 *tailcfg.DERPNode) error {
	a, b, err := t.pair(at1, at2)
	if err != nil {
		return err
	}
	if err := a.send(b.public, []byte("I was here")); err != nil {
		return err
	}
	if err := expectPacket(t.ctx, b.receiver, a.public, []byte("I was here")); err != nil {
		return err
	}
	if err := a.Close(); err != nil {
		return err
	}
	return t.expectGone(b.receiver, a.public, derp.PeerGoneReasonDisconnected)
}

// connectMesh logs in as a mesh peer does, and watches.
func (t *trial) connectMesh(node *tailcfg.DERPNode) (*tapped, error) {
	m, err := t.connectTapped(node, derp.MeshKey(t.meshKey))
	if err != nil {
		return nil, err
	}
	return m, m.WatchConnectionChanges()
}

// expectPresent waits until the watcher learned of all these keys, in any order, and returns their messages.
func (t *trial) expectPresent(m *tapped, keys ...key.NodePublic) (map[key.NodePublic]derp.PeerPresentMessage, error) {
	seen := map[key.NodePublic]derp.PeerPresentMessage{}
	for {
		if !slices.ContainsFunc(keys, func(k key.NodePublic) bool { _, ok := seen[k]; return !ok }) {
			return seen, nil
		}
		p, err := m.next(t.ctx, "PeerPresent")
		if err != nil {
			return nil, fmt.Errorf("%w (have %d of %d)", err, len(seen), len(keys))
		}
		// Clients of earlier scenarios may still be leaving.
		if p, ok := p.(derp.PeerPresentMessage); ok {
			seen[p.Key] = p
		}
	}
}

func meshWatch(t *trial) error {
	before, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	m, err := t.connectMesh(t.node(0))
	if err != nil {
		return err
	}
	flood, err := t.expectPresent(m, before.public, m.public)
	if err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	if self := flood[m.public]; self.Flags&derp.PeerPresentIsMeshPeer == 0 {
		return fmt.Errorf("own flags are %#x, want the mesh peer bit", self.Flags)
	}
	other := flood[before.public]
	if other.Flags != derp.PeerPresentIsRegular {
		return fmt.Errorf("a client's flags are %#x, want %#x", other.Flags, derp.PeerPresentIsRegular)
	}
	if local, err := before.LocalAddr(); err != nil || other.IPPort != local {
		return fmt.Errorf("a client's address is %v, want %v (%v)", other.IPPort, local, err)
	}
	after, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	if _, err := t.expectPresent(m, after.public); err != nil {
		return fmt.Errorf("new client: %w", err)
	}
	if err := after.Close(); err != nil {
		return err
	}
	if err := t.awaitGone(m, after.public); err != nil {
		return err
	}
	for typ, want := range map[derp.FrameType]uint32{derp.FramePeerPresent: 51, derp.FramePeerGone: 33} {
		for _, got := range m.tap.lengths(typ) {
			if got != want {
				return fmt.Errorf("frame %#x has %d bytes, want %d", typ, got, want)
			}
		}
	}
	return nil
}

// awaitGone waits for a key to leave, whatever else the watcher is told meanwhile.
func (t *trial) awaitGone(m *tapped, who key.NodePublic) error {
	for {
		msg, err := m.next(t.ctx, "PeerGone")
		if err != nil {
			return err
		}
		gone, ok := msg.(derp.PeerGoneMessage)
		if !ok || gone.Peer != who {
			continue
		}
		if gone.Reason != derp.PeerGoneReasonDisconnected {
			return fmt.Errorf("reason %#x, want %#x", gone.Reason, derp.PeerGoneReasonDisconnected)
		}
		return nil
	}
}

func meshForward(t *trial) error {
	to, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	m, err := t.connectMesh(t.node(0))
	if err != nil {
		return err
	}
	if _, err := t.expectPresent(m, to.public); err != nil {
		return err
	}
	// The source is a client of the mesh peer: the server does not know it.
	source := key.NewNode().Public()
	for _, payload := range [][]byte{[]byte("forwarded"), {}, bytes.Repeat([]byte{7}, derp.MaxPacketSize)} {
		if err := m.ForwardPacket(source, to.public, payload); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, to.receiver, source, payload); err != nil {
			return fmt.Errorf("%d bytes forwarded: %w", len(payload), err)
		}
	}
	return nil
}

func meshClosePeer(t *trial) error {
	victim, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	m, err := t.connectMesh(t.node(0))
	if err != nil {
		return err
	}
	if err := m.ClosePeer(victim.public); err != nil {
		return err
	}
	select {
	case <-victim.failed:
		return nil
	case <-t.ctx.Done():
		return errors.New("the client's connection stayed open")
	}
}

func meshWrongKey(t *trial) error {
	wrong, err := key.ParseDERPMesh("5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a")
	if err != nil {
		return err
	}
	m, err := t.connectTapped(t.node(0), derp.MeshKey(wrong))
	if err != nil {
		return fmt.Errorf("the login itself must pass: %w", err)
	}
	// An ordinary client in everything else.
	if err := m.Send(m.public, []byte("to myself")); err != nil {
		return err
	}
	if err := expectPacket(t.ctx, m.receiver, m.public, []byte("to myself")); err != nil {
		return err
	}
	if err := m.WatchConnectionChanges(); err != nil {
		return err
	}
	select {
	case <-m.failed:
	case <-t.ctx.Done():
		return errors.New("the connection stayed open")
	}
	if got := m.tap.lengths(derp.FramePeerPresent); len(got) != 0 {
		return fmt.Errorf("%d PeerPresent frames reached an ordinary client", len(got))
	}
	return nil
}
