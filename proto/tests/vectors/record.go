//go:build ignore

// Records what stock software puts on the wire: two logins and every frame that passes in a short session, a STUN exchange and a DERP
// map. Prints lines `name hex`. See README.md for how to run it.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const meshKey = "6d6573686d6573686d6573686d6573686d6573686d6573686d6573686d657368"

// A connection that remembers what passed.
type recorder struct {
	net.Conn
	mu             sync.Mutex
	sent, received []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	n, err := r.Conn.Write(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, b[:n]...)
	return n, err
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received = append(r.received, b[:n]...)
	return n, err
}

func private(fill byte) (key.NodePrivate, []byte) {
	raw := slices.Repeat([]byte{fill}, 32)
	raw[0] &= 248
	raw[31] = raw[31]&127 | 64
	k := must(key.ParseNodePrivateUntyped(mem.S(hex.EncodeToString(raw))))
	return k, raw
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func line(name string, bytes []byte) { fmt.Printf("%s %x\n", name, bytes) }

func connect(server *derpserver.Server, k key.NodePrivate, opts ...derp.ClientOpt) (*derp.Client, *recorder) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	conn := &recorder{Conn: must(net.Dial("tcp", listener.Addr().String()))}
	accepted := must(listener.Accept())
	brw := bufio.NewReadWriter(bufio.NewReader(accepted), bufio.NewWriter(accepted))
	go server.Accept(context.Background(), accepted, brw, "203.0.113.7:41641")
	brw = bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	c := must(derp.NewClient(k, conn, brw, log.Printf, opts...))
	expect[derp.ServerInfoMessage](c)
	return c, conn
}

// expect receives until a message of type T comes.
func expect[T derp.ReceivedMessage](c *derp.Client) {
	for {
		m := must(c.Recv())
		if reflect.TypeOf(m) == reflect.TypeFor[T]() {
			return
		}
	}
}

func main() {
	serverKey, rawServer := private(0x11)
	aliceKey, rawAlice := private(0x22)
	peerKey, rawPeer := private(0x33)
	server := derpserver.New(serverKey, func(string, ...any) {})
	check(server.SetMeshKey(meshKey))

	peer, peerConn := connect(server, peerKey, derp.MeshKey(must(key.ParseDERPMesh(meshKey))), derp.IsProber(true))
	check(peer.WatchConnectionChanges())
	expect[derp.PeerPresentMessage](peer)
	alice, aliceConn := connect(server, aliceKey, derp.CanAckPings(true), derp.AppName("vectors"))
	expect[derp.PeerPresentMessage](peer)
	check(alice.NotePreferred(true))
	check(alice.SendPing([8]byte{1, 2, 3, 4, 5, 6, 7, 8}))
	expect[derp.PongMessage](alice)
	check(alice.Send(aliceKey.Public(), nil))
	expect[derp.ReceivedPacket](alice)
	check(alice.Send(peerKey.Public(), []byte("hello")))
	expect[derp.ReceivedPacket](peer)
	check(peer.ForwardPacket(key.NodePublicFromRaw32(mem.B(slices.Repeat([]byte{0x44}, 32))), aliceKey.Public(), []byte("forwarded")))
	expect[derp.ReceivedPacket](alice)
	disco := append([]byte("TS\U0001f4ac"), make([]byte, 56)...)
	check(alice.Send(key.NodePublicFromRaw32(mem.B(slices.Repeat([]byte{0x55}, 32))), disco))
	expect[derp.PeerGoneMessage](alice)
	check(alice.SendPong([8]byte{8, 7, 6, 5, 4, 3, 2, 1}))
	check(peer.ClosePeer(aliceKey.Public()))
	// Once as a watcher, once because alice had sent it a packet.
	expect[derp.PeerGoneMessage](peer)
	expect[derp.PeerGoneMessage](peer)

	line("server.private", rawServer)
	line("alice.private", rawAlice)
	line("peer.private", rawPeer)
	line("alice.sent", aliceConn.sent)
	line("alice.received", aliceConn.received)
	line("peer.sent", peerConn.sent)
	line("peer.received", peerConn.received)

	tx := stun.TxID([]byte("transaction!"))
	line("stun.request", stun.Request(tx))
	line("stun.response.v4", stun.Response(tx, netip.MustParseAddrPort("192.0.2.1:32853")))
	line("stun.response.v6", stun.Response(tx, netip.MustParseAddrPort("[2001:db8::1]:32853")))
	line("stun.response.mapped", stun.Response(tx, netip.MustParseAddrPort("[::ffff:192.0.2.1]:32853")))
	line("derpmap.small", must(json.Marshal(smallMap())))
	line("derpmap.full", must(json.Marshal(fullMap())))
	line("key.text", []byte(strings.Join([]string{serverKey.Public().String(), serverKey.Public().UntypedHexString(), serverKey.Public().ShortString()}, " ")))
}

func smallMap() *tailcfg.DERPMap {
	node := &tailcfg.DERPNode{Name: "900a", RegionID: 900, HostName: "relay.example"}
	region := &tailcfg.DERPRegion{RegionID: 900, RegionCode: "fra", RegionName: "Frankfurt", Nodes: []*tailcfg.DERPNode{node}}
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{900: region}}
}

func fullMap() *tailcfg.DERPMap {
	m := smallMap()
	m.HomeParams = &tailcfg.DERPHomeParams{RegionScore: map[int]float64{901: 0.5}}
	m.OmitDefaultRegions = true
	m.Regions[901] = &tailcfg.DERPRegion{
		RegionID: 901, RegionCode: "nyc", RegionName: "New York", Latitude: 40.75, Longitude: -73.5, Avoid: true, NoMeasureNoHome: true,
		Nodes: []*tailcfg.DERPNode{{
			Name: "901a", RegionID: 901, HostName: "nyc.example", CertName: "c.example", IPv4: "192.0.2.1", IPv6: "none", STUNPort: -1,
			STUNOnly: true, DERPPort: 8443, InsecureForTests: true, STUNTestIP: "192.0.2.2", CanPort80: true,
		}},
	}
	return m
}
