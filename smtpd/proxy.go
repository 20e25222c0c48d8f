package smtpd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The PROXY protocol of load balancers, versions 1 and 2, names the client of a connection (www.haproxy.org,
// proxy-protocol.txt).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	maxProxyLine   = 107     // of version 1, with its CRLF
	maxProxyHeader = 4 << 10 // of version 2, behind its first 16 octets
)

var errProxy = errors.New("bad PROXY header")

// isProxy tells whether a connection from that address must begin with a PROXY header.
func (l *listener) isProxy(ip netip.Addr) bool {
	return slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// introduce reads the PROXY header of a connection and returns the client's address. Without a good one it closes the
// connection: nobody but the proxy itself has a claim to speak.
func (s *Server) introduce(conn net.Conn, l *listener, proxy netip.Addr) (netip.Addr, error) {
	stop := s.watch(conn)
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(s.handshakeTimeout()))
	client, err := readProxy(conn, proxy)
	if err == nil {
		return client, nil
	}
	s.metrics.rejected.WithLabelValues("proxy").Inc()
	s.log.Warn("session.rejected", "listener", l.name, "ip", proxy, "reason", "proxy", "err", err)
	_ = conn.Close()
	return netip.Addr{}, err
}

// readProxy reads one header and not an octet more: TLS may follow. The proxy's own connections, health checks, keep its
// address.
func readProxy(r io.Reader, proxy netip.Addr) (netip.Addr, error) {
	head := make([]byte, len(proxySignature), maxProxyLine)
	if _, err := io.ReadFull(r, head); err != nil {
		return proxy, err
	}
	if string(head) == proxySignature {
		return readProxy2(r, proxy)
	}
	if !strings.HasPrefix(string(head), "PROXY ") {
		return proxy, errProxy
	}
	one := make([]byte, 1)
	for !strings.HasSuffix(string(head), "\n") {
		if len(head) == maxProxyLine {
			return proxy, errProxy
		}
		if _, err := io.ReadFull(r, one); err != nil {
			return proxy, err
		}
		head = append(head, one[0])
	}
	line, ok := strings.CutSuffix(string(head), "\r\n")
	if !ok {
		return proxy, errProxy
	}
	words := strings.Split(line, " ")
	if words[1] == "UNKNOWN" {
		return proxy, nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return proxy, errProxy
	}
	client, ok := proxyAddr(words[2], words[1])
	if _, known := proxyAddr(words[3], words[1]); !ok || !known || !isPort(words[4]) || !isPort(words[5]) {
		return proxy, errProxy
	}
	return client.Unmap(), nil
}

// proxyAddr reads an address of version 1.
func proxyAddr(s, family string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == "" && a.Is4() == (family == "TCP4")
}

// isPort takes a decimal number without leading zeros.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// readProxy2 reads what follows the signature of version 2.
func readProxy2(r io.Reader, proxy netip.Addr) (netip.Addr, error) {
	var fixed [4]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return proxy, err
	}
	size := int(binary.BigEndian.Uint16(fixed[2:]))
	if size > maxProxyHeader {
		return proxy, fmt.Errorf("%w: %d octets", errProxy, size)
	}
	rest := make([]byte, size)
	if _, err := io.ReadFull(r, rest); err != nil {
		return proxy, err
	}
	switch fixed[0] {
	case 0x20: // LOCAL
		return proxy, nil
	case 0x21: // PROXY
	default:
		return proxy, errProxy
	}
	switch family := fixed[1]; {
	case family == 0x11 && size >= 12:
		return netip.AddrFrom4([4]byte(rest)), nil
	case family == 0x21 && size >= 36:
		return netip.AddrFrom16([16]byte(rest)).Unmap(), nil
	case family == 0:
		return proxy, nil
	}
	return proxy, errProxy
}
