package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derpconst"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// trial is one run of one scenario: it opens clients and closes them at the end.
type trial struct {
	*env
	ctx   context.Context
	close []func()
}

func (t *trial) closeAll() {
	for _, f := range t.close {
		f()
	}
}

// receiver collects what one connection receives; scenarios wait on it.
type receiver struct {
	messages chan derp.ReceivedMessage
	failed   chan struct{} // closed when the connection ended
	err      error         // why; read after failed is closed
}

// receivedMax bounds how many messages wait for the scenario.
const receivedMax = 4096

func receive(recv func() (derp.ReceivedMessage, error)) *receiver {
	r := &receiver{messages: make(chan derp.ReceivedMessage, receivedMax), failed: make(chan struct{})}
	go func() {
		defer close(r.failed)
		for {
			m, err := recv()
			if err != nil {
				r.err = err
				return
			}
			if p, ok := m.(derp.ReceivedPacket); ok {
				p.Data = bytes.Clone(p.Data) // it aliases the client's buffer
				m = p
			}
			select {
			case r.messages <- m:
			default:
				r.err = errors.New("the scenario does not read its messages")
				return
			}
		}
	}()
	return r
}

// next returns the next message that is not a keep-alive.
func (r *receiver) next(ctx context.Context, what string) (derp.ReceivedMessage, error) {
	for {
		var m derp.ReceivedMessage
		select {
		case m = <-r.messages:
		default:
			select {
			case m = <-r.messages:
			case <-r.failed:
				return nil, fmt.Errorf("connection ended while waiting for %s: %w", what, r.err)
			case <-ctx.Done():
				return nil, fmt.Errorf("no %s: %w", what, ctx.Err())
			}
		}
		if _, keepAlive := m.(derp.KeepAliveMessage); !keepAlive {
			return m, nil
		}
	}
}

// expect returns the next message, which must be of type M.
func expect[M derp.ReceivedMessage](ctx context.Context, r *receiver) (M, error) {
	var want M
	m, err := r.next(ctx, fmt.Sprintf("%T", want))
	if err != nil {
		return want, err
	}
	got, ok := m.(M)
	if !ok {
		return want, fmt.Errorf("got %T %v, want %T", m, m, want)
	}
	return got, nil
}

// stock is a logged-in stock client on one node.
type stock struct {
	*derphttp.Client
	*receiver
	public key.NodePublic
}

// connect logs a stock client with a fresh key in at a node and waits for the answer, which must come first.
func (t *trial) connect(node *tailcfg.DERPNode) (*stock, error) {
	return t.connectWith(node, key.NewNode(), nil)
}

func (t *trial) connectWith(node *tailcfg.DERPNode, private key.NodePrivate, configure func(*derphttp.Client)) (*stock, error) {
	region := &tailcfg.DERPRegion{RegionID: node.RegionID, RegionCode: node.Name, Nodes: []*tailcfg.DERPNode{node}}
	return t.connectRegion(region, private, configure)
}

// connectRegion logs in at the first node of the region that takes a connection.
func (t *trial) connectRegion(region *tailcfg.DERPRegion, private key.NodePrivate, configure func(*derphttp.Client)) (*stock, error) {
	c := t.newClient(region, private)
	if configure != nil {
		configure(c)
	}
	if err := c.Connect(t.ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", region.RegionCode, err)
	}
	s := &stock{Client: c, public: private.Public()}
	// Recv dials anew after a failure; a receiver that stops at the first error keeps that from being hidden.
	s.receiver = receive(c.Recv)
	if _, err := expect[derp.ServerInfoMessage](t.ctx, s.receiver); err != nil {
		return nil, fmt.Errorf("login at %s: %w", region.RegionCode, err)
	}
	return s, nil
}

// newClient makes a stock client of a region that has not dialled yet.
func (t *trial) newClient(region *tailcfg.DERPRegion, private key.NodePrivate) *derphttp.Client {
	c := derphttp.NewRegionClient(private, t.logf, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	c.TLSConfig = &tls.Config{RootCAs: t.roots}
	c.SetCanAckPings(true)
	t.close = append(t.close, func() { _ = c.Close() })
	return c
}

// send sends one packet. Tailscale's HTTP client returns nil even for a failed write, so only arrival proves it.
func (s *stock) send(to key.NodePublic, payload []byte) error {
	if err := s.Send(to, payload); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// expectPacket waits for exactly this packet.
func expectPacket(ctx context.Context, r *receiver, from key.NodePublic, payload []byte) error {
	p, err := expect[derp.ReceivedPacket](ctx, r)
	switch {
	case err != nil:
		return err
	case p.Source != from:
		return fmt.Errorf("packet from %v, want from %v", p.Source.ShortString(), from.ShortString())
	case !bytes.Equal(p.Data, payload):
		return fmt.Errorf("packet of %d bytes differs from the %d bytes sent", len(p.Data), len(payload))
	}
	return nil
}

// quiet proves that the connection works and that nothing waits on it: a packet to oneself is the next message.
func (t *trial) quiet(s *stock) error {
	probe := []byte("nothing before me")
	if err := s.send(s.public, probe); err != nil {
		return err
	}
	return expectPacket(t.ctx, s.receiver, s.public, probe)
}

// pause waits the settle time after a login.
func (t *trial) pause() error {
	select {
	case <-time.After(t.settle):
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// frameSeen is the header of a frame the server sent.
type frameSeen struct {
	typ    derp.FrameType
	length uint32
}

// tap passes a byte stream on and notes the frames in it, so that lengths on the wire can be checked:
// the stock decoder hides them.
type tap struct {
	r io.Reader

	mu      sync.Mutex
	raw     int    // bytes read so far
	header  []byte // of the frame being read
	pending uint32 // payload bytes still to come
	frames  []frameSeen
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raw += n
	for b := p[:n]; len(b) > 0; {
		if t.pending > 0 {
			skip := min(int(t.pending), len(b))
			t.pending -= uint32(skip)
			b = b[skip:]
			continue
		}
		t.header = append(t.header, b[0])
		b = b[1:]
		if len(t.header) == derp.FrameHeaderLen {
			f := frameSeen{derp.FrameType(t.header[0]), binary.BigEndian.Uint32(t.header[1:])}
			t.frames, t.pending, t.header = append(t.frames, f), f.length, t.header[:0]
		}
	}
	return n, err
}

func (t *tap) bytesRead() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw
}

// lengths returns the payload lengths of all frames of one type seen so far.
func (t *tap) lengths(typ derp.FrameType) (lengths []uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.frames {
		if f.typ == typ {
			lengths = append(lengths, f.length)
		}
	}
	return lengths
}

func (t *tap) first() (frameSeen, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.frames) == 0 {
		return frameSeen{}, false
	}
	return t.frames[0], true
}

// tapped is the stock frame-level client on a connection opened here, by fast start.
type tapped struct {
	*derp.Client
	*receiver
	tap         *tap
	public      key.NodePublic
	metaKey     key.NodePublic // server key named by the MetaCert
	readAtLogin int            // bytes received when ClientInfo had been sent
}

// connectTapped opens a connection by fast start; the login answer has been received when it returns.
func (t *trial) connectTapped(node *tailcfg.DERPNode, opts ...derp.ClientOpt) (*tapped, error) {
	conn, err := t.dialTLS(node)
	if err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	metaKey, version := metaCert(state.PeerCertificates)
	switch {
	case state.Version < tls.VersionTLS13:
		return nil, fmt.Errorf("%s negotiated %s: fast start needs TLS 1.3", node.Name, tls.VersionName(state.Version))
	case version == 0:
		return nil, fmt.Errorf("%s presents no certificate named %s...", node.Name, derpconst.MetaCertCommonNamePrefix)
	case version != derp.ProtocolVersion:
		return nil, fmt.Errorf("%s's MetaCert states version %d, want %d", node.Name, version, derp.ProtocolVersion)
	}
	private := key.NewNode()
	c := &tapped{tap: &tap{r: conn}, public: private.Public(), metaKey: metaKey}
	brw := bufio.NewReadWriter(bufio.NewReader(c.tap), bufio.NewWriter(conn))
	req, err := http.NewRequest("GET", "https://"+node.HostName+"/derp", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Upgrade", "DERP")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set(derp.FastStartHeader, "1")
	if err := req.Write(brw); err != nil {
		return nil, err
	}
	opts = append(opts, derp.ServerPublicKey(metaKey))
	if c.Client, err = derp.NewClient(private, conn, brw, t.logf, opts...); err != nil {
		return nil, err
	}
	c.readAtLogin = c.tap.bytesRead()
	c.receiver = receive(c.Client.Recv)
	if _, err := expect[derp.ServerInfoMessage](t.ctx, c.receiver); err != nil {
		return nil, fmt.Errorf("login at %s: %w", node.Name, err)
	}
	return c, nil
}

func (t *trial) dialTLS(node *tailcfg.DERPNode) (*tls.Conn, error) {
	host, port := node.IPv4, node.DERPPort
	if host == "" {
		host = node.HostName
	}
	if port == 0 {
		port = 443
	}
	d := tls.Dialer{Config: &tls.Config{
		RootCAs:            t.roots,
		ServerName:         node.HostName,
		InsecureSkipVerify: node.InsecureForTests,
	}}
	conn, err := d.DialContext(t.ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", node.Name, err)
	}
	t.close = append(t.close, func() { _ = conn.Close() })
	return conn.(*tls.Conn), nil
}

// metaCert finds the server key and protocol version in the presented certificates; version 0 means there is none.
func metaCert(certs []*x509.Certificate) (key.NodePublic, int) {
	for _, cert := range certs {
		hex, ok := strings.CutPrefix(cert.Subject.CommonName, derpconst.MetaCertCommonNamePrefix)
		if !ok {
			continue
		}
		public, err := key.ParseNodePublicUntyped(mem.S(hex))
		if err == nil && cert.SerialNumber.BitLen() <= 8 {
			return public, int(cert.SerialNumber.Int64())
		}
	}
	return key.NodePublic{}, 0
}
