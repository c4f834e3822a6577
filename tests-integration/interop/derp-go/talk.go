package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/types/key"
)

// talkRounds is how many packets each of two talking clients sends.
const talkRounds = 50

// talk plays one of two stock clients, which may reach different nodes. As stock clients do, it sends by a connection to its peer's home
// region, never by its own home, and receives by both. Neither client sends on before it has the other's packet, and none is sent twice.
//
// It prints `home KEY SERVER`, reads `peer KEY` and prints `side SERVER`: the client's key, and the servers' it ended at.
func talk(t *trial) error {
	private := key.NewNode()
	home, err := t.connectRegion(t.listed[t.home], private, func(c *derphttp.Client) { c.NotePreferred(true) })
	if err != nil {
		return err
	}
	fmt.Println("home", home.public.UntypedHexString(), home.ServerPublicKey().UntypedHexString())
	peer, err := t.readPeer(inputLines())
	if err != nil {
		return err
	}
	side, received := home, home.receiver
	if t.peerHome != t.home {
		if side, err = t.connectRegion(t.listed[t.peerHome], private, nil); err != nil {
			return err
		}
		received = either(home.receiver, side.receiver)
	}
	fmt.Println("side", side.ServerPublicKey().UntypedHexString())
	if err := t.pause(); err != nil {
		return err
	}
	for round := range talkRounds {
		payload := fmt.Appendf(nil, "round %d", round)
		if err := side.send(peer, payload); err != nil {
			return err
		}
		if err := expectPacket(t.ctx, received, peer, payload); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

// inputLines gives the lines of standard input, and is closed at its end.
func inputLines() <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// readPeer reads the other client's key.
func (t *trial) readPeer(lines <-chan string) (key.NodePublic, error) {
	select {
	case line := <-lines:
		hex, found := strings.CutPrefix(line, "peer ")
		if !found {
			return key.NodePublic{}, errors.New("no line `peer KEY` on standard input")
		}
		return key.ParseNodePublicUntyped(mem.S(hex))
	case <-t.ctx.Done():
		return key.NodePublic{}, fmt.Errorf("waiting for the peer's key: %w", t.ctx.Err())
	}
}

// either receives what comes by any of two connections, each of which gives its messages to the new receiver alone.
func either(a, b *receiver) *receiver {
	return receive(func() (derp.ReceivedMessage, error) {
		select {
		case m := <-a.messages:
			return m, nil
		case m := <-b.messages:
			return m, nil
		case <-a.failed:
			return nil, a.err
		case <-b.failed:
			return nil, b.err
		}
	})
}
