package smtpd

import (
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// probes are the tricks by which open relays are found: reverse-path and forward-path.
var probes = []struct{ name, from, to string }{
	{"plain", "x@stranger.example", "v@victim.example"},
	{"null sender", "", "v@victim.example"},
	{"sender is local", "x@relay.example.com", "v@victim.example"},
	{"sender is a hosted domain", "a@example.com", "v@victim.example"},
	{"sender is the address literal", "x@[127.0.0.1]", "v@victim.example"},
	{"sender is postmaster", "postmaster@relay.example.com", "v@victim.example"},
	{"sender is localhost", "x@localhost", "v@victim.example"},
	{"sender equals recipient", "v@victim.example", "v@victim.example"},
	{"quoted sender with a route", `"x@relay.example.com"@stranger.example`, "v@victim.example"},
	{"percent hack at the host", "x@stranger.example", "v%victim.example@relay.example.com"},
	{"percent hack at the literal", "x@stranger.example", "v%victim.example@[127.0.0.1]"},
	{"percent hack at localhost", "x@stranger.example", "v%victim.example@localhost"},
	{"percent hack at a hosted domain", "x@stranger.example", "v%victim.example@example.com"},
	{"double percent", "x@stranger.example", "v%victim.example%relay.example.com@relay.example.com"},
	{"whole address quoted", "x@stranger.example", `"v@victim.example"`},
	{"quoted percent", "x@stranger.example", `"v%victim.example"`},
	{"quoted at the host", "x@stranger.example", `"v@victim.example"@relay.example.com`},
	{"quoted at the literal", "x@stranger.example", `"v@victim.example"@[127.0.0.1]`},
	{"two ats", "x@stranger.example", "v@victim.example@relay.example.com"},
	{"two ats and the literal", "x@stranger.example", "v@victim.example@[127.0.0.1]"},
	{"source route by the host", "x@stranger.example", "@relay.example.com:v@victim.example"},
	{"source route by the literal", "x@stranger.example", "@[127.0.0.1]:v@victim.example"},
	{"long source route", "x@stranger.example", "@relay.example.com,@example.com:v@victim.example"},
	{"bang path", "x@stranger.example", "victim.example!v"},
	{"bang path at the host", "x@stranger.example", "victim.example!v@relay.example.com"},
	{"bang path at the literal", "x@stranger.example", "victim.example!v@[127.0.0.1]"},
	{"bang path by way of the host", "x@stranger.example", "relay.example.com!victim.example!v"},
	{"no domain", "x@stranger.example", "v"},
	{"trailing dot", "x@stranger.example", "v@victim.example."},
	{"postmaster elsewhere", "x@stranger.example", "postmaster@victim.example"},
	{"abuse elsewhere", "x@stranger.example", "abuse@victim.example"},
	{"a return path elsewhere", "x@stranger.example", "b.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@victim.example"},
	{"victim in upper case", "x@STRANGER.EXAMPLE", "V@VICTIM.EXAMPLE"},
	{"angle brackets inside", "x@stranger.example", `"v@victim.example> NOTIFY=NEVER"@relay.example.com`},
	{"line break as text", "x@stranger.example", `v\r\nRCPT TO:<v@victim.example>@relay.example.com`},
}

// TestB1OpenRelayProbes: a stranger gets no recipient accepted on any listener, in plain text, under TLS, after a failed
// AUTH, over IPv4 and IPv6.
func TestB1OpenRelayProbes(t *testing.T) {
	t.Parallel()
	require.GreaterOrEqual(t, len(probes), 30)
	f, h := startInbound(t, func(c *Config) {
		c.MaxErrors, c.MaxJunkCommands, c.MaxAuthFailures = 1000, 1000, 1000
		if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
			_ = l.Close()
			c.Listeners = append(c.Listeners, Listener{Kind: Submission, Address: "[::1]:0", TLS: NoTLS}, Listener{Kind: Inbound, Address: "[::1]:0", TLS: StartTLS})
		}
	})
	ways := map[string]struct {
		tls        bool
		failedAuth bool
	}{"plain": {}, "tls": {tls: true}, "after failed AUTH": {tls: true, failedAuth: true}}
	for i, l := range f.listeners {
		for name, way := range ways {
			if l.tls == NoTLS && way.tls || l.tls == Implicit && !way.tls {
				continue
			}
			t.Run(l.kind+" "+l.tls+" "+network(l.Addr())+" "+name, func(t *testing.T) {
				c := f.dial(t, i)
				if l.tls == Implicit {
					c.upgrade()
				}
				c.expect("220 ")
				c.cmd("EHLO probe.example", "250 ")
				if way.tls && l.tls == StartTLS {
					c.cmd("STARTTLS", "220 ")
					c.upgrade()
					c.cmd("EHLO probe.example", "250 ")
				}
				if way.failedAuth {
					c.send("AUTH PLAIN " + plainIR("app", "wrong") + "\r\n")
					require.Regexp(t, "^5", c.reply())
				}
				for _, p := range probes {
					for _, params := range []string{"", " SIZE=1"} {
						c.send("MAIL FROM:<" + p.from + ">" + params + "\r\n")
						_ = c.reply()
						c.send("RCPT TO:<" + p.to + ">\r\n")
						require.Regexp(t, "^5", c.reply(), "%s: RCPT", p.name)
						c.send("DATA\r\n")
						require.Regexp(t, "^5", c.reply(), "%s: DATA", p.name)
						c.cmd("RSET", "250 ")
					}
				}
				c.cmd("QUIT", "221 ")
			})
		}
	}
	t.Cleanup(func() {
		require.Empty(t, f.rec.all(), "nothing was queued")
		require.Empty(t, h.all(), "nothing came in")
	})
}

func network(a net.Addr) string {
	if strings.HasPrefix(a.String(), "[") {
		return "ipv6"
	}
	return "ipv4"
}
