package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// What the tests of the rows of the threat model and of the deliverability list share.

// handIn hands one message in over HTTP, from news@shop.example, and returns its queue ID.
func (r *relay) handIn(to ...string) string {
	r.t.Helper()
	c := r.client()
	defer c.Close()
	m := api.SendMessage{From: api.Mailbox{Email: "news@shop.example"}, Subject: "row", Text: "Hello.\n"}
	for _, email := range to {
		m.To = append(m.To, api.Mailbox{Email: email})
	}
	got, err := c.SendMessage(r.t.Context(), m, "")
	require.NoError(r.t, err)
	return got.ID
}

// envelope is the first envelope of a message as the API shows it.
func (r *relay) envelope(id string) api.QueueItem {
	r.t.Helper()
	c := r.client()
	defer c.Close()
	m, err := c.QueueMessage(r.t.Context(), id)
	require.NoError(r.t, err)
	require.NotEmpty(r.t, m.Envelopes)
	return m.Envelopes[0]
}

// until waits for an envelope to come to a state, and returns it.
func (r *relay) until(id, state string) (e api.QueueItem) {
	r.t.Helper()
	wait(r.t, id+" "+state, 30*time.Second, func() bool { e = r.envelope(id); return e.State == state })
	return e
}

// records are the lines of an event in the log; every line must be one JSON object.
func (r *relay) records(event string) (found []map[string]any) {
	r.t.Helper()
	text := r.logText()
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		var rec map[string]any
		require.NoError(r.t, json.Unmarshal([]byte(line), &rec), "%q", line)
		if rec["msg"] == event {
			found = append(found, rec)
		}
	}
	return found
}

// record waits for a line of an event in which the attributes, key and value in turn, begin so, and returns it.
func (r *relay) record(event string, attrs ...string) (found map[string]any) {
	r.t.Helper()
	wait(r.t, event+" "+strings.Join(attrs, " ")+" in the log", 20*time.Second, func() bool {
	next:
		for _, rec := range r.records(event) {
			for i := 0; i < len(attrs); i += 2 {
				if text, _ := rec[attrs[i]].(string); !strings.HasPrefix(text, attrs[i+1]) {
					continue next
				}
			}
			found = rec
			return true
		}
		return false
	})
	return found
}

// metric is the value of a metric, its labels and all in the name.
func (r *relay) metric(name string) float64 {
	r.t.Helper()
	res, err := http.Get("http://127.0.0.1:" + itoa(r.http) + "/metrics")
	require.NoError(r.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(r.t, err)
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	require.NotNil(r.t, m, name)
	v, err := strconv.ParseFloat(string(m[1]), 64)
	require.NoError(r.t, err)
	return v
}

// point gives a domain one MX host, mx.DOMAIN, at an address.
func (r *relay) point(domain, ip string) {
	r.t.Helper()
	require.NoError(r.t, r.dns.Add(domain+". 60 IN MX 10 mx."+domain+"."))
	require.NoError(r.t, r.dns.Add("mx."+domain+". 60 IN A "+ip))
}

// said counts the commands of a verb that came to an MX.
func said(mx *testutil.MX, verb string) (n int) {
	for _, c := range mx.Commands() {
		if word, _, _ := strings.Cut(c, " "); strings.EqualFold(word, verb) {
			n++
		}
	}
	return n
}

// at is a rule of an MX: one act at one verb, always.
func at(verb string, act testutil.Act) func(testutil.Step) testutil.Act {
	return func(s testutil.Step) testutil.Act {
		if s.Verb == verb {
			return act
		}
		return testutil.Act{}
	}
}

// trusted writes the certificate of an authority and returns the environment of a relay that trusts it alone.
func trusted(t *testing.T, ca *testutil.CA) []string {
	t.Helper()
	file := t.TempDir() + "/roots.pem"
	writeFile(t, file, string(ca.PEM()))
	return []string{"SSL_CERT_FILE=" + file}
}
