package smtpd

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

// TestOperations: every session has one event in the log and every message one, with what an operator asks for, and the
// counters tell the listeners apart.
func TestOperations(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.Listeners[plain].Address, cfg.Listeners[starttls].Address = "127.0.0.1:10587", "127.0.0.1:587"
	cfg.Listeners[implicit].Address, cfg.Listeners[inbound].Address = "127.0.0.1:465", "127.0.0.1:25"
	f := &fixture{rec: &recorder{}, log: &lockedBuffer{}}
	deps := testDeps(f.rec, nil)
	deps.Log = slog.New(slog.NewJSONHandler(f.log, nil)) // level info
	reg := prometheus.NewPedanticRegistry()
	deps.Metrics = reg
	var err error
	f.Server, err = newServer(cfg, deps)
	require.NoError(t, err)

	dial := func(i int) (*client, chan struct{}) {
		conn, done := f.pipe(t, i)
		return &client{t: t, Conn: conn, r: bufio.NewReader(conn)}, done
	}
	end := func(c *client, done chan struct{}) {
		c.cmd("QUIT", "221")
		<-done
	}
	c, done := dial(plain)
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH PLAIN "+plainIR("app", "wrong"), "535")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
	c.transaction()
	c.cmd("Subject: x\r\n\r\nhello\r\n.", "250")
	c.transaction()
	c.cmd("bare\nLF\r\n.", "554 5.6.0")
	f.rec.err = mail.Refuse(451, mail.Status{Class: 4, Subject: 3}, "Later", io.ErrUnexpectedEOF)
	c.transaction()
	c.cmd("Subject: x\r\n\r\nhello\r\n.", "451 4.3.0")
	require.InDelta(t, 1, gather(t, reg)["relayd_smtpd_sessions_open submission submission-10587"], 0)
	end(c, done)
	for _, i := range []int{inbound, starttls} {
		c, done = dial(i)
		c.expect("220")
		end(c, done)
	}
	require.NoError(t, f.Close())

	events := map[string][]map[string]any{}
	for line := range strings.SplitSeq(strings.TrimSpace(f.log.String()), "\n") {
		var e map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &e), line)
		name, _ := e["msg"].(string)
		events[name] = append(events[name], e)
	}
	require.Len(t, events["session.closed"], 3)
	require.Len(t, events["message.accepted"], 1)
	require.Len(t, events["message.refused"], 1)
	require.Len(t, events["message.deferred"], 1)
	require.Len(t, events["auth.failed"], 1)
	require.Len(t, events, 5, "at level info nothing else is said: %v", events)
	closed := events["session.closed"][0]
	require.Equal(t, "127.0.0.1:10587", closed["listener"])
	require.Equal(t, "192.0.2.1", closed["ip"])
	require.Equal(t, "quit", closed["reason"])
	require.EqualValues(t, 3, closed["count"])
	for _, name := range []string{"accepted", "refused", "deferred"} {
		e := events["message."+name][0]
		require.Equal(t, closed["session"], e["session"])
		require.Equal(t, "a@example.com", e["from"])
		require.Equal(t, "default", e["account"])
		require.EqualValues(t, 1, e["count"])
	}
	require.NotEmpty(t, events["message.accepted"][0]["queue_id"])
	require.EqualValues(t, 451, events["message.deferred"][0]["code"])
	require.Contains(t, events["message.deferred"][0]["err"], "unexpected EOF", "the log has what the client is not told")

	values := gather(t, reg)
	for name, want := range map[string]float64{
		"relayd_smtpd_sessions_total inbound inbound-25": 1, "relayd_smtpd_sessions_total submission submission-10587": 1,
		"relayd_smtpd_sessions_total submission submission-587": 1, "relayd_smtpd_sessions_total submission submission-465": 0,
		"relayd_smtpd_sessions_open submission submission-10587": 0, "relayd_smtpd_sessions_open inbound inbound-25": 0,
		"relayd_smtpd_messages_total submission submission-10587 accepted": 1,
		"relayd_smtpd_messages_total submission submission-10587 refused":  1,
		"relayd_smtpd_messages_total submission submission-10587 deferred": 1,
		"relayd_smtpd_messages_total submission submission-587 accepted":   0,
		"relayd_smtpd_auth_total ok":                                       1, "relayd_smtpd_auth_total failed": 1, "relayd_smtpd_auth_total malformed": 0,
	} {
		got, known := values[name]
		require.True(t, known, "%s: %v", name, values)
		require.InDelta(t, want, got, 0, name)
	}
}

// gather returns the counters and gauges by name and values of labels.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}
