package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/nacl/box"
	"tailscale.com/derp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// raw is a connection spoken byte by byte: for what the stock client code would never send, or hides.
type raw struct {
	conn   *tls.Conn
	br     *bufio.Reader
	head   string // the answer to the upgrade
	server key.NodePublic
	public key.NodePublic
	info   []byte // ServerInfo as opened; after login
}

// closeWait is how long a server may take to close a connection whose client broke the protocol.
const closeWait = 5 * time.Second

// rawUpgrade upgrades without fast start, by the bytes a stock client sends, and reads the greeting.
func (t *trial) rawUpgrade(node *tailcfg.DERPNode) (*raw, error) {
	conn, err := t.dialTLS(node)
	if err != nil {
		return nil, err
	}
	if deadline, ok := t.ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	request := "GET /derp HTTP/1.1\r\nHost: " + node.HostName + "\r\nUser-Agent: Go-http-client/1.1\r\n" +
		"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
	if _, err := conn.Write([]byte(request)); err != nil {
		return nil, err
	}
	r := &raw{conn: conn, br: bufio.NewReader(conn)}
	for !strings.HasSuffix(r.head, "\r\n\r\n") {
		line, err := r.br.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("after %q: %w", r.head, err)
		}
		r.head += line
	}
	typ, payload, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if typ != derp.FrameServerKey || len(payload) != 40 || string(payload[:8]) != derp.Magic {
		return nil, fmt.Errorf("greeting is frame %#x of %d bytes: %x", typ, len(payload), payload)
	}
	r.server = key.NodePublicFromRaw32(memRO(payload[8:]))
	return r, nil
}

// rawLogin logs in with this JSON and reads the answer; a refusal is the error errRefused.
func (t *trial) rawLogin(node *tailcfg.DERPNode, private key.NodePrivate, json string) (*raw, error) {
	r, err := t.rawUpgrade(node)
	if err != nil {
		return nil, err
	}
	r.public = private.Public()
	login := append(r.public.AppendTo(nil), private.SealTo(r.server, []byte(json))...)
	if err := r.write(derp.FrameClientInfo, login); err != nil {
		return nil, err
	}
	typ, payload, err := r.read()
	if errors.Is(err, io.EOF) || isReset(err) {
		return nil, errRefused
	}
	if err != nil {
		return nil, err
	}
	info, ok := private.OpenFrom(r.server, payload)
	if typ != derp.FrameServerInfo || !ok {
		return nil, fmt.Errorf("the answer to a login is frame %#x of %d bytes, opened: %t", typ, len(payload), ok)
	}
	r.info = info
	return r, nil
}

var errRefused = errors.New("the server closed the connection instead of answering the login")

// isReset: a server that has not read everything resets.
func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection reset")
}

func (r *raw) write(typ derp.FrameType, payload []byte) error {
	_, err := r.conn.Write(frame(typ, payload))
	return err
}

func frame(typ derp.FrameType, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{byte(typ)}, uint32(len(payload)))
	return append(b, payload...)
}

func (r *raw) read() (derp.FrameType, []byte, error) {
	var header [derp.FrameHeaderLen]byte
	if _, err := io.ReadFull(r.br, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > 1<<20 {
		return 0, nil, fmt.Errorf("a frame of %d bytes", length)
	}
	payload := make([]byte, length)
	_, err := io.ReadFull(r.br, payload)
	return derp.FrameType(header[0]), payload, err
}

// next reads the next frame that is no keep-alive and must be of this type.
func (r *raw) next(want derp.FrameType) ([]byte, error) {
	for {
		typ, payload, err := r.read()
		switch {
		case err != nil:
			return nil, fmt.Errorf("instead of frame %#x: %w", want, err)
		case typ == want:
			return payload, nil
		case typ != derp.FrameKeepAlive:
			return nil, fmt.Errorf("frame %#x of %d bytes instead of frame %#x", typ, len(payload), want)
		}
	}
}

// alive proves that the connection is still served: a packet to itself comes back. (Pings may be answered at a limited rate.) Frames
// before that are counted by type.
func (r *raw) alive() (map[derp.FrameType]int, error) {
	probe := r.public.AppendTo(nil)
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	probe = append(probe, random[:]...)
	if err := r.write(derp.FrameSendPacket, probe); err != nil {
		return nil, err
	}
	before := map[derp.FrameType]int{}
	for {
		typ, payload, err := r.read()
		if err != nil {
			return before, err
		}
		// Source and destination are the same.
		if typ == derp.FrameRecvPacket && bytes.Equal(payload, probe) {
			return before, nil
		}
		before[typ]++
	}
}

// ended reads until the server has closed the connection.
func (r *raw) ended() error {
	if err := r.conn.SetReadDeadline(time.Now().Add(closeWait)); err != nil {
		return err
	}
	for {
		if _, _, err := r.read(); err != nil {
			var timeout interface{ Timeout() bool }
			if errors.As(err, &timeout) && timeout.Timeout() {
				return fmt.Errorf("the connection stayed open for %v", closeWait)
			}
			return nil
		}
	}
}

// sealFrom seals as whoever holds a key of low order: the shared secret with it is the same for everybody.
func sealFrom(lowOrder [32]byte, json string) ([]byte, error) {
	var nonce [24]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	anybody := key.NewNode().Raw32()
	return box.Seal(nonce[:], []byte(json), &nonce, &lowOrder, &anybody), nil
}
