// websocket connects two stock clients through WebSockets, each to one URL, and exchanges packets between them, both ways.
// Build it with -tags ts_debug_websockets: without, stock clients outside browsers have no WebSocket.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/envknob"
	"tailscale.com/net/netmon"
	"tailscale.com/types/key"
)

// timeout bounds the whole run.
const timeout = 20 * time.Second

// settle is what stock probers wait between the answer to a login and the first packet.
const settle = 100 * time.Millisecond

// sizes of the packets: none, one message, more than one read, the largest.
var sizes = []int{0, 5, 40_000, 65_536}

type client struct {
	*derphttp.Client
	public key.NodePublic
}

func connect(ctx context.Context, url string) (*client, error) {
	private := key.NewNode()
	c, err := derphttp.NewClient(private, url, log.Printf, netmon.NewStatic())
	if err != nil {
		return nil, err
	}
	c.SetCanAckPings(true)
	if err := c.Connect(ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	if m, err := c.Recv(); err != nil {
		return nil, fmt.Errorf("log in at %s: %w", url, err)
	} else if _, ok := m.(derp.ServerInfoMessage); !ok {
		return nil, fmt.Errorf("first message is %T", m)
	}
	return &client{c, private.Public()}, nil
}

// transfer sends one packet and waits for it.
func transfer(from, to *client, payload []byte) error {
	if err := from.Send(to.public, payload); err != nil {
		return err
	}
	for {
		m, err := to.Recv()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case derp.KeepAliveMessage:
		case derp.ReceivedPacket:
			if m.Source != from.public || !bytes.Equal(m.Data, payload) {
				return fmt.Errorf("another packet of %d bytes from %v", len(m.Data), m.Source.ShortString())
			}
			return nil
		default:
			return fmt.Errorf("unexpected %T", m)
		}
	}
}

func run(urls []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var clients []*client
	for _, url := range urls {
		c, err := connect(ctx, url)
		if err != nil {
			return err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	time.Sleep(settle)
	for _, size := range sizes {
		late := time.AfterFunc(timeout, func() { log.Fatalf("%d bytes: no packet came in time", size) })
		defer late.Stop()
		payload := bytes.Repeat([]byte{byte(size)}, size)
		if err := transfer(clients[0], clients[1], payload); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
		if err := transfer(clients[1], clients[0], payload); err != nil {
			return fmt.Errorf("%d bytes back: %w", size, err)
		}
	}
	return nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: websocket URL URL")
	}
	envknob.Setenv("TS_DEBUG_DERP_WS_CLIENT", "true")
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
	fmt.Println("ok")
}
