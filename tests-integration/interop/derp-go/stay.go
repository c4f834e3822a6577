package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/types/key"
	"tailscale.com/util/backoff"
)

// stayPace is the time between two packets.
const stayPace = 5 * time.Millisecond

// stayDrain is how long a client goes on receiving after it has sent its last packet.
const stayDrain = 2 * time.Second

// stayer is a stock client that stays connected as in Tailscale's daemon: it reads again and again, and the client dials anew.
type stayer struct {
	*derphttp.Client

	mu sync.Mutex
	// When each packet was handed over, in nanoseconds since 1970; a packet's number is its place.
	sent []int64
	// The numbers of the peer's packets, as they came.
	received []uint32
}

// stay keeps a stock client connected to one region, whatever happens there, and sends numbered packets to its peer, whose home is the
// same region.
//
// It prints `home KEY`, and `login TIME SERVER` for each login, in nanoseconds since 1970. After `peer KEY` on standard input it sends, up to the
// end of the input. Then it prints what it sent and received, as JSON.
func stay(t *trial) error {
	private := key.NewNode()
	s := &stayer{Client: t.newClient(t.listed[t.home], private)}
	s.NotePreferred(true)
	fmt.Println("home", private.Public().UntypedHexString())
	go s.read(t.ctx)
	lines := inputLines()
	peer, err := t.readPeer(lines)
	if err != nil {
		return err
	}
	if err := s.sendUntilClosed(t.ctx, peer, lines); err != nil {
		return err
	}
	select {
	case <-time.After(stayDrain):
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	said, err := json.Marshal(map[string]any{"sent": s.sent, "received": s.received})
	if err != nil {
		return err
	}
	fmt.Println(string(said))
	return nil
}

// read takes what comes, and connects again after every failure, with the pauses of Tailscale's daemon.
func (s *stayer) read(ctx context.Context) {
	pause := backoff.NewBackoff("stay", func(string, ...any) {}, 5*time.Second)
	for ctx.Err() == nil {
		m, err := s.Recv()
		if errors.Is(err, derphttp.ErrClientClosed) {
			return
		}
		pause.BackOff(ctx, err)
		switch m := m.(type) {
		case derp.ServerInfoMessage:
			fmt.Println("login", time.Now().UnixNano(), s.ServerPublicKey().UntypedHexString())
		case derp.ReceivedPacket:
			s.mu.Lock()
			s.received = append(s.received, binary.BigEndian.Uint32(m.Data))
			s.mu.Unlock()
		case derp.PingMessage:
			go func() { _ = s.SendPong([8]byte(m)) }()
		}
	}
}

func (s *stayer) sendUntilClosed(ctx context.Context, peer key.NodePublic, lines <-chan string) error {
	pace := time.NewTicker(stayPace)
	defer pace.Stop()
	for number := uint32(0); ; number++ {
		select {
		case <-pace.C:
		case _, more := <-lines:
			if more {
				return errors.New("nothing but the end is expected after the peer's key")
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		s.sent = append(s.sent, time.Now().UnixNano())
		s.mu.Unlock()
		// While it dials anew this waits, or says that it failed: the packet is under way then, and may be lost.
		_ = s.Send(peer, binary.BigEndian.AppendUint32(nil, number))
	}
}
