package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/disco"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func memRO(b []byte) mem.RO { return mem.B(b) }

// clientJSON is what a stock client says at login.
const clientJSON = `{"version":2,"CanAckPings":true}`

func rawUpgrade(t *trial) error {
	r, err := t.rawUpgrade(t.node(0))
	if err != nil {
		return err
	}
	want := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n" +
		"Derp-Public-Key: " + r.server.UntypedHexString() + "\r\n\r\n"
	if r.head != want {
		return fmt.Errorf("the answer is %q, want %q", r.head, want)
	}
	return nil
}

func metaCertExact(t *trial) error {
	conn, err := t.dialTLS(t.node(0))
	if err != nil {
		return err
	}
	certs := conn.ConnectionState().PeerCertificates
	c := certs[len(certs)-1]
	named, version := metaCert(certs)
	now := time.Now()
	switch {
	case version != derp.ProtocolVersion || c.Subject.CommonName != "derpkey"+named.UntypedHexString():
		return fmt.Errorf("the last certificate is %q, version %d", c.Subject.CommonName, version)
	case c.SerialNumber.Int64() != 2:
		return fmt.Errorf("serial %v, want 2", c.SerialNumber)
	case c.Issuer.CommonName != c.Subject.CommonName || c.SignatureAlgorithm != x509.PureEd25519:
		return fmt.Errorf("issuer %q, signed by %v", c.Issuer.CommonName, c.SignatureAlgorithm)
	case len(c.Extensions) != 1 || !c.Extensions[0].Id.Equal([]int{2, 5, 29, 19}) || !c.Extensions[0].Critical || c.IsCA:
		return fmt.Errorf("extensions are %v, want critical basic constraints alone, no CA", c.Extensions)
	case len(c.SubjectKeyId) != 0 || len(c.AuthorityKeyId) != 0:
		return errors.New("it has a key identifier: probers would watch its expiry")
	case now.Before(c.NotBefore.Add(24*time.Hour)) || now.After(c.NotAfter.Add(-24*time.Hour)):
		return fmt.Errorf("valid from %v to %v, want about 30 days to each side", c.NotBefore, c.NotAfter)
	}
	return nil
}

func serverInfo(t *trial) error {
	r, err := t.rawLogin(t.node(0), key.NewNode(), clientJSON)
	if err != nil {
		return err
	}
	if string(r.info) != `{"version":2}` {
		return fmt.Errorf("ServerInfo is %s", r.info)
	}
	return nil
}

// sizeRules are those of the frame catalogue: the lengths around each limit, and whether they pass.
var sizeRules = []struct {
	typ     derp.FrameType
	good    []int
	bad     []int
	meshKey bool
}{
	{derp.FrameSendPacket, []int{32, 33, 32 + 65536}, []int{31, 32 + 65537}, false},
	{derp.FrameNotePreferred, []int{1}, []int{0, 2}, false},
	{derp.FramePing, []int{8, 9, 1000}, []int{7, 1001}, false},
	{derp.FrameForwardPacket, []int{64, 65, 64 + 65536}, []int{63, 64 + 65537}, true},
	{derp.FrameWatchConns, []int{0}, []int{1}, true},
	{derp.FrameClosePeer, []int{32}, []int{31, 33}, true},
	// Of clients a server knows nothing else: skipped, as a type of the future.
	{derp.FrameServerKey, []int{0, 40}, nil, false},
	{derp.FrameType(0x77), []int{0, 1, 65536}, nil, false},
}

// filler is no key of anybody and no disco packet.
func filler(n int) []byte { return bytes.Repeat([]byte{0x5c}, n) }

func sizeRulesHold(t *trial) error {
	for _, rule := range sizeRules {
		json := clientJSON
		if rule.meshKey {
			if t.meshKey.IsZero() {
				continue
			}
			json = fmt.Sprintf(`{"meshKey":%q,"version":2}`, t.meshKey.String())
		}
		r, err := t.rawLogin(t.node(0), key.NewNode(), json)
		if err != nil {
			return err
		}
		for _, n := range rule.good {
			if err := r.write(rule.typ, filler(n)); err != nil {
				return fmt.Errorf("frame %#x of %d bytes: %w", rule.typ, n, err)
			}
			if _, err := r.alive(); err != nil {
				return fmt.Errorf("frame %#x of %d bytes: %w", rule.typ, n, err)
			}
		}
		for _, n := range rule.bad {
			if r, err = t.rawLogin(t.node(0), key.NewNode(), json); err != nil {
				return err
			}
			// The server may close before it has read all.
			_ = r.write(rule.typ, filler(n))
			if err := r.ended(); err != nil {
				return fmt.Errorf("frame %#x of %d bytes: %w", rule.typ, n, err)
			}
		}
	}
	return nil
}

func clientInfoJSON(t *trial) error {
	wrong := strings.Repeat("5a", 32)
	for _, c := range []struct {
		json string
		ok   bool
	}{
		{`{}`, true},
		{clientJSON, true},
		{`{"Version":5,"MeshKey":"` + wrong + `"}`, true},
		{`{"VERSION":2,"canackpings":true,"isPROBER":true,"appname":"x"}`, true},
		{`{"version":2,"future":[{"deep":1}],"also":null}`, true},
		{`{"version":0}`, true},
		{`{"version":-1}`, true},
		{`{"version":99}`, true},
		{`{"meshKey":""}`, false},
		{`{"meshKey":null}`, false},
		{`{"meshKey":"` + wrong[1:] + `"}`, false},
		{`{"meshKey":"` + wrong[2:] + `zz"}`, false},
		{`{"version":"x"}`, false},
		{`{"version":1.5}`, false},
		{`{"version":9223372036854775808}`, false},
		{`[]`, false},
		{`{`, false},
	} {
		_, err := t.rawLogin(t.node(0), key.NewNode(), c.json)
		if c.ok && err != nil || !c.ok && !errors.Is(err, errRefused) {
			return fmt.Errorf("%s: %v, want it accepted: %t", c.json, err, c.ok)
		}
	}
	return nil
}

// weakKeys are points whose shared secret with any key is known to all.
var weakKeys = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func weakKeysRefused(t *trial) error {
	for _, text := range weakKeys {
		var weak [32]byte
		if _, err := hex.Decode(weak[:], []byte(text)); err != nil {
			return err
		}
		sealed, err := sealFrom(weak, clientJSON)
		if err != nil {
			return err
		}
		r, err := t.rawUpgrade(t.node(0))
		if err != nil {
			return err
		}
		if err := r.write(derp.FrameClientInfo, append(weak[:], sealed...)); err != nil {
			return err
		}
		if typ, _, err := r.read(); err == nil {
			return fmt.Errorf("a login as %s is answered with frame %#x", text, typ)
		}
	}
	// Stock servers contain a crash here; whoever else is connected must not notice.
	c, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	return t.quiet(c)
}

func unprivilegedFrames(t *trial) error {
	for _, f := range []struct {
		typ    derp.FrameType
		length int
	}{{derp.FrameWatchConns, 0}, {derp.FrameClosePeer, 32}, {derp.FrameForwardPacket, 70}} {
		bystander, err := t.connect(t.node(0))
		if err != nil {
			return err
		}
		r, err := t.rawLogin(t.node(0), key.NewNode(), clientJSON)
		if err != nil {
			return err
		}
		payload := filler(f.length)
		if f.length >= 32 {
			copy(payload[f.length-f.length%32-32:], bystander.public.AppendTo(nil))
		}
		if err := r.write(f.typ, payload); err != nil {
			return err
		}
		if err := r.ended(); err != nil {
			return fmt.Errorf("frame %#x without the mesh key: %w", f.typ, err)
		}
		// Neither closed nor handed a packet.
		if err := t.quiet(bystander); err != nil {
			return fmt.Errorf("after frame %#x: %w", f.typ, err)
		}
	}
	return nil
}

func notHereLimit(t *trial) error {
	r, err := t.rawLogin(t.node(0), key.NewNode(), clientJSON)
	if err != nil {
		return err
	}
	shaped := make([]byte, 32+discoLenMin)
	copy(shaped, key.NewNode().Public().AppendTo(nil))
	copy(shaped[32:], disco.Magic)
	var burst []byte
	for range 10 {
		burst = append(burst, frame(derp.FrameSendPacket, shaped)...)
	}
	if _, err := r.conn.Write(burst); err != nil {
		return err
	}
	// Nothing orders them before the packet that shows the connection alive: look twice after the third.
	gone := 0
	for enough := 0; enough < 2; {
		before, err := r.alive()
		if err != nil {
			return fmt.Errorf("after %d answers: %w", gone, err)
		}
		gone += before[derp.FramePeerGone]
		if gone >= 3 {
			enough++
		}
	}
	if gone != 3 {
		return fmt.Errorf("ten quick packets to nobody gave %d frames, want 3", gone)
	}
	ordinary := append(key.NewNode().Public().AppendTo(nil), "to nobody"...)
	for range 10 {
		if err := r.write(derp.FrameSendPacket, ordinary); err != nil {
			return err
		}
	}
	for range 2 {
		if before, err := r.alive(); err != nil || len(before) != 0 {
			return fmt.Errorf("ten ordinary packets to nobody gave %v (%v), want silence", before, err)
		}
	}
	return nil
}

func peerGoneTwice(t *trial) error {
	b, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	returning := key.NewNode()
	for visit := range 2 {
		a, err := t.connectWith(t.node(0), returning, nil)
		if err != nil {
			return err
		}
		if err := a.send(b.public, []byte("hello")); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, b.receiver, a.public, []byte("hello")); err != nil {
			return fmt.Errorf("visit %d: %w", visit, err)
		}
		if err := a.Close(); err != nil {
			return err
		}
		if err := t.expectGone(b.receiver, a.public, derp.PeerGoneReasonDisconnected); err != nil {
			return fmt.Errorf("visit %d: %w", visit, err)
		}
	}
	return nil
}

func duplicateKey(t *trial) error {
	sender, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	private := key.NewNode()
	var members []*stock
	// arrives checks that what is sent to the key reaches this member.
	arrives := func(at int, what string) error {
		if err := sender.send(private.Public(), []byte(what)); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, members[at].receiver, sender.public, []byte(what)); err != nil {
			return fmt.Errorf("%s, member %d: %w", what, at, err)
		}
		return nil
	}
	for i := range 3 {
		m, err := t.connectWith(t.node(0), private, nil)
		if err != nil {
			return err
		}
		members = append(members, m)
		if err := arrives(i, "the newest is active"); err != nil {
			return err
		}
	}
	for _, i := range []int{0, 2, 1} {
		// Any frame counts; the pong shows that it was read.
		if err := members[i].Ping(t.ctx); err != nil {
			return err
		}
		if err := arrives(i, "the last writer is active"); err != nil {
			return err
		}
	}
	// The writers were 0, 2, 1: each that leaves hands over to the one before.
	if err := members[1].Close(); err != nil {
		return err
	}
	if err := t.until(func() error { return sendAndExpect(t, sender, private.Public(), members[2]) }); err != nil {
		return fmt.Errorf("after the last writer left: %w", err)
	}
	if err := members[2].Close(); err != nil {
		return err
	}
	if err := t.until(func() error { return sendAndExpect(t, sender, private.Public(), members[0]) }); err != nil {
		return fmt.Errorf("with one member left: %w", err)
	}
	return nil
}

// until tries again until it works or the scenario's time is over: for what a server notices by itself.
func (t *trial) until(try func() error) error {
	for {
		err := try()
		if err == nil || t.ctx.Err() != nil {
			return err
		}
	}
}

// sendAndExpect sends a packet to a key and waits a moment for it at one of the key's connections.
func sendAndExpect(t *trial, from *stock, to key.NodePublic, at *stock) error {
	if err := from.send(to, []byte("who is left")); err != nil {
		return err
	}
	for {
		select {
		case m := <-at.messages:
			if p, ok := m.(derp.ReceivedPacket); ok && p.Source == from.public {
				return nil
			}
		case <-time.After(100 * time.Millisecond):
			return errors.New("no packet")
		case <-t.ctx.Done():
			return t.ctx.Err()
		}
	}
}

func watchDuplicates(t *trial) error {
	m, err := t.connectMesh(t.node(0))
	if err != nil {
		return err
	}
	if _, err := t.expectPresent(m, m.public); err != nil {
		return err
	}
	private := key.NewNode()
	var members []*stock
	for range 3 {
		member, err := t.connectWith(t.node(0), private, nil)
		if err != nil {
			return err
		}
		members = append(members, member)
		if _, err := t.expectPresent(m, private.Public()); err != nil {
			return fmt.Errorf("connection %d is not told: %w", len(members), err)
		}
	}
	for _, member := range members {
		if err := member.Close(); err != nil {
			return err
		}
	}
	if err := t.awaitGone(m, private.Public()); err != nil {
		return err
	}
	// Whatever else the watcher is told, no second farewell: a newcomer's presence closes the list.
	after, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	for {
		msg, err := m.next(t.ctx, "PeerPresent")
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case derp.PeerGoneMessage:
			if msg.Peer == private.Public() {
				return errors.New("PeerGone came twice for three connections")
			}
		case derp.PeerPresentMessage:
			if msg.Key == after.public {
				return nil
			}
		}
	}
}

func meshClosePeerAll(t *trial) error {
	m, err := t.connectMesh(t.node(0))
	if err != nil {
		return err
	}
	private := key.NewNode()
	var victims []*stock
	for range 2 {
		victim, err := t.connectWith(t.node(0), private, nil)
		if err != nil {
			return err
		}
		victims = append(victims, victim)
	}
	// Of a key that nobody has nothing happens.
	if err := m.ClosePeer(key.NewNode().Public()); err != nil {
		return err
	}
	if err := m.ClosePeer(private.Public()); err != nil {
		return err
	}
	for i, victim := range victims {
		select {
		case <-victim.failed:
		case <-t.ctx.Done():
			return fmt.Errorf("connection %d stayed open", i)
		}
	}
	return t.awaitGone(m, private.Public())
}

// pinned connects a stock client that knows nothing of the server but the hash of its certificate.
func pinned(t *trial) error {
	conn, err := t.dialTLS(t.node(0))
	if err != nil {
		return err
	}
	leaf := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
	connect := func(hash [32]byte) (*stock, error) {
		node := t.node(0).Clone()
		node.CertName = "sha256-raw:" + hex.EncodeToString(hash[:])
		return t.connectWith(node, key.NewNode(), func(c *derphttp.Client) { c.TLSConfig.RootCAs = x509.NewCertPool() })
	}
	c, err := connect(leaf)
	if err != nil {
		return fmt.Errorf("with the right hash: %w", err)
	}
	if _, err := connect(sha256.Sum256([]byte("another"))); err == nil {
		return errors.New("a wrong hash was accepted: this scenario shows nothing")
	}
	return t.quiet(c)
}

// idle keeps a connection through five keep-alives, which takes more than five minutes, and then uses it.
func idle(t *trial) error {
	c, err := t.connect(t.node(0))
	if err != nil {
		return err
	}
	for n := 0; n < 5; {
		select {
		case m := <-c.messages:
			if _, ok := m.(derp.KeepAliveMessage); !ok {
				return fmt.Errorf("an idle client got %T", m)
			}
			n++
		case <-c.failed:
			return fmt.Errorf("connection ended after %d keep-alives: %w", n, c.err)
		case <-t.ctx.Done():
			return fmt.Errorf("%d keep-alives: %w", n, t.ctx.Err())
		}
	}
	return t.quiet(c)
}

// bulkPackets of the largest size are 100 MB; bulkInFlight of them are under way at a time, as a stock prober has it.
const (
	bulkPackets  = 1526
	bulkInFlight = 30
)

func bulk(t *trial) error {
	for _, r := range t.regions {
		if len(r.Nodes) < 2 {
			continue
		}
		return t.transfer(r.Nodes[0], r.Nodes[1])
	}
	return errors.New("no region with two nodes")
}

func (t *trial) transfer(at1, at2 *tailcfg.DERPNode) error {
	a, b, err := t.pair(at1, at2)
	if err != nil {
		return err
	}
	payload := func(i int) []byte {
		p := bytes.Repeat([]byte{byte(i)}, derp.MaxPacketSize)
		copy(p, fmt.Sprintf("packet %d of %d", i, bulkPackets))
		return p
	}
	inFlight := make(chan struct{}, bulkInFlight)
	sent := make(chan error, 1)
	go func() {
		for i := range bulkPackets {
			select {
			case inFlight <- struct{}{}:
			case <-t.ctx.Done():
				sent <- t.ctx.Err()
				return
			}
			if err := a.send(b.public, payload(i)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range bulkPackets {
		if err := expectPacket(t.ctx, b.receiver, a.public, payload(i)); err != nil {
			return fmt.Errorf("packet %d of %d, %s -> %s: %w", i, bulkPackets, at1.Name, at2.Name, err)
		}
		<-inFlight
	}
	return <-sent
}

// Packets of the size of a stock client's call-me-maybe, at this pace, whose delay a stock prober measures.
const (
	delayedPackets = 200
	delayedLength  = 260
	delayedPace    = 10 * time.Millisecond
	delayMax       = time.Second
)

func queuingDelay(t *trial) error {
	for _, r := range t.regions {
		if len(r.Nodes) < 2 {
			continue
		}
		return errors.Join(t.delays(r.Nodes[0], r.Nodes[0]), t.delays(r.Nodes[0], r.Nodes[1]))
	}
	return errors.New("no region with two nodes")
}

func (t *trial) delays(at1, at2 *tailcfg.DERPNode) error {
	a, b, err := t.pair(at1, at2)
	if err != nil {
		return err
	}
	var slowest time.Duration
	pace := time.NewTicker(delayedPace)
	defer pace.Stop()
	for i := range delayedPackets {
		payload := append(fmt.Appendf(nil, "%03d", i), filler(delayedLength-3)...)
		sent := time.Now()
		if err := a.send(b.public, payload); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, b.receiver, a.public, payload); err != nil {
			return fmt.Errorf("packet %d, %s -> %s: %w", i, at1.Name, at2.Name, err)
		}
		slowest = max(slowest, time.Since(sent))
		<-pace.C
	}
	if slowest > delayMax {
		return fmt.Errorf("%s -> %s: the slowest of %d packets took %v", at1.Name, at2.Name, delayedPackets, slowest)
	}
	return nil
}
