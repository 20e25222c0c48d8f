package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon answers as the admin API does, from a table, and remembers what was asked.
type daemon struct {
	socket  string
	answers map[string]string // "METHOD /path" → body, or "STATUS body"

	mu    sync.Mutex
	asked []string // "METHOD /path?query body"
}

func newDaemon(t *testing.T, answers map[string]string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &daemon{socket: filepath.Join(dir, "s"), answers: answers}
	ln, err := net.Listen("unix", d.socket)
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(d)
	s.Listener.Close()
	s.Listener = ln
	s.Start()
	t.Cleanup(s.Close)
	return d
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.mu.Lock()
	d.asked = append(d.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
	d.mu.Unlock()
	answer, ok := d.answers[r.Method+" "+r.URL.RequestURI()]
	if !ok {
		answer, ok = d.answers[r.Method+" "+r.URL.Path]
	}
	if !ok {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"title":"Not found","status":404,"code":"not_found","detail":"There is no such thing."}`)
		return
	}
	if strings.HasPrefix(answer, "4") || strings.HasPrefix(answer, "5") {
		status, rest, _ := strings.Cut(answer, " ")
		code := 0
		_, _ = fmt.Sscan(status, &code)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(code)
		answer = rest
	}
	fmt.Fprint(w, answer)
}

func (d *daemon) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.asked...)
}

// ctl runs relayctl against d (nil: no daemon).
func ctl(t *testing.T, d *daemon, in string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	env := map[string]string{"RELAYD_CONFIG": filepath.Join(t.TempDir(), "none.toml")}
	if d != nil {
		env["RELAYCTL_SOCKET"] = d.socket
	}
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader(in), out: &out, err: &errOut, env: func(k string) string { return env[k] }}
	code = a.run(t.Context(), args)
	return code, out.String(), errOut.String()
}

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// requireOneValue wants exactly one JSON value.
func requireOneValue(t *testing.T, out string) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(out))
	var v any
	require.NoError(t, d.Decode(&v), out)
	_, err := d.Token()
	require.ErrorIs(t, err, io.EOF, out)
}

const (
	queueItem = `{"id":"0hzx3k9m2q7v5c8d1f40.0","message":"0hzx3k9m2q7v5c8d1f40","state":"deferred","account":"default","stream":"s","class":"bulk",` +
		`"from":"","to":"ann@example.com","attempts":2,"next_attempt":"2026-11-20T10:00:00Z",` +
		`"last_reply":{"code":451,"enhanced":"4.7.1","text":"\u001b[31mtry\u009b later \u202egnp"},"last_host":"mx.example.com"}`
	suppressed = `{"email":"ann@example.com","scope":"global","reason":"hard_bounce","created_at":"2026-11-20T10:00:00Z"}`
	domainBody = `{"name":"example.com","account":"default","sign":"required","ready":false,"reasons":["dkim_missing"],` +
		`"keys":[{"selector":"r20261","algorithm":"rsa-sha256","state":"active"}],` +
		`"dns_records":[{"purpose":"dkim","type":"TXT","name":"r20261._domainkey.example.com","value":"v=DKIM1; k=rsa; p=MIIB","required":true,` +
		`"status":"mismatch","observed":["v=DKIM1; p="],"detail":"the record differs from the key"}]}`
	campaignBody = `{"id":"cmp_1","account":"default","name":"Sale","state":"draft","from":{"email":"deals@example.com","name":"Shop"},"subject":"Hi",` +
		`"stream":"broadcast","total":2,"created_at":"2026-11-20T10:00:00Z"}`
	progressBody = `{"id":"cmp_1","name":"Sale","state":"completed","total":3,"counts":{"delivered":2,"bounced":1},"rate":{"last_10s":1.5,"average":2},` +
		`"limited_by":"","eta":null,"created_at":"2026-11-20T10:00:00Z","started_at":"2026-11-20T10:00:01Z","first_delivered_at":null,` +
		`"snapshot_at":null,"finished_at":"2026-11-20T10:00:03Z","providers":[]}`
	recipientsBody = `{"data":[{"address":"x@example.com","state":"bounced","attempts":1,"smtp":{"code":550,"enhanced":"5.1.1","text":"no such user","host":"mx.example.com[192.0.2.1]"},` +
		`"message":"0hzx3k9m2q7v5c8d1f40.1a","at":"2026-11-20T10:00:02Z"}],"has_more":true,"next_cursor":"c2"}`
	importBody = `{"rows_read":3,"created":2,"duplicates":0,"skipped_unsubscribed":0,"rejected":1,"errors":[{"line":3,"byte_offset":40,"column":"Email","value":"bad","code":"invalid_email","detail":"no @"}],"errors_truncated":false,"bytes_read":60,"total":2}`
)

func answers() map[string]string {
	return map[string]string{
		"GET /v1/queue":                              `{"data":[` + queueItem + `],"has_more":false}`,
		"GET /v1/queue/0hzx3k9m2q7v5c8d1f40":         `{"id":"0hzx3k9m2q7v5c8d1f40","account":"default","stream":"s","class":"bulk","from":"a@example.net","subject":"Hi","size":120,"accepted_at":"2026-11-20T09:00:00Z","envelopes":[` + queueItem + `]}`,
		"GET /v1/queue/0hzx3k9m2q7v5c8d1f40/why":     `{"id":"0hzx3k9m2q7v5c8d1f40","account":"default","stream":"s","from":"a@example.net","accepted_at":"2026-11-20T09:00:00Z","waiting":{"suspended":1},"envelopes":[{"id":"0hzx3k9m2q7v5c8d1f40.0","to":"ann@example.com","state":"deferred","reason":"suspended","text":"paused after 2 failures in a row","site":"mx.example.com","limited_by":"site mx.example.com","since":"2026-11-20T09:00:00Z","until":"2026-11-20T10:00:00Z","attempts":1,"replies":[{"at":"2026-11-20T09:00:00Z","event":"deferred","attempt":1,"host":"mx.example.com[192.0.2.1]","reply":{"code":451,"enhanced":"4.7.1","text":"later"}}]}]}`,
		"GET /v1/history":                            `{"data":[{"id":"0hzx3k9m2q7v5c8d1f40.0","message":"0hzx3k9m2q7v5c8d1f40","state":"delivered","account":"default","stream":"s","class":"","from":"a@example.net","to":"ann@example.com","attempts":2,"accepted_at":"2026-11-20T09:00:00Z","settled_at":"2026-11-20T09:00:05Z","last_host":"mx.example.com","tls":"TLS1.3","last_reply":{"code":250,"text":"OK"}}],"has_more":false}`,
		"GET /v1/queue/stats":                        `{"queued":3,"ready":1,"deferred":1,"held":1,"leased":0,"in_doubt":0,"outcomes":{"delivered":7,"bounced":1,"failed":0,"expired":0,"suppressed":2,"cancelled":0}}`,
		"POST /v1/queue/actions":                     `{"action":"hold","dry_run":true,"matched":4,"changed":3,"in_flight":1,"unchanged":0}`,
		"GET /v1/suppressions":                       `{"data":[` + suppressed + `],"has_more":false}`,
		"POST /v1/suppressions":                      `{"email":"ann@example.com","scope":"global","reason":"manual","created":true}`,
		"GET /v1/suppressions/ann@example.com":       `{"email":"ann@example.com","entries":[` + suppressed + `],"effective":{"transactional":"blocked","broadcast":"blocked"}}`,
		"DELETE /v1/suppressions/ann@example.com":    `{"email":"ann@example.com","removed":1}`,
		"POST /v1/suppressions/import":               `{"rows":2,"created":1,"unchanged":0,"rejected":1,"errors":[{"row":2,"column":"email","value":"x","code":"invalid_email","detail":"no @"}]}`,
		"GET /v1/suppressions/export?format=csv":     "email,scope\nann@example.com,global\n",
		"GET /v1/suppressions/export?format=jsonl":   suppressed + "\n" + suppressed + "\n",
		"GET /v1/credentials":                        `{"data":[{"username":"u1","account":"default","domains":null,"created_at":"2026-11-20T10:00:00Z"}],"has_more":false}`,
		"POST /v1/credentials":                       `{"username":"u1","account":"default","domains":["example.com"],"created_at":"2026-11-20T10:00:00Z","password":"s3cret"}`,
		"DELETE /v1/credentials/u1":                  "",
		"GET /v1/keys":                               `{"data":[{"id":"key_1","account":"default","name":"shop","scopes":["all"],"created_at":"2026-11-20T10:00:00Z"}],"has_more":false}`,
		"POST /v1/keys":                              `{"id":"key_1","account":"default","scopes":["all"],"created_at":"2026-11-20T10:00:00Z","key":"rk_live_1_x"}`,
		"DELETE /v1/keys/key_1":                      "",
		"GET /v1/domains":                            `{"data":[` + domainBody + `],"has_more":false}`,
		"POST /v1/domains":                           domainBody,
		"GET /v1/domains/example.com":                domainBody,
		"POST /v1/domains/example.com/verify":        domainBody,
		"POST /v1/domains/example.com/dkim/rotate":   domainBody,
		"POST /v1/domains/example.com/dkim/activate": domainBody,
		"GET /v1/campaigns":                          `{"data":[` + campaignBody + `],"has_more":false}`,
		"POST /v1/campaigns":                         campaignBody,
		"POST /v1/campaigns/cmp_1/recipients":        importBody,
		"POST /v1/campaigns/cmp_1/start":             strings.Replace(campaignBody, "draft", "running", 1),
		"POST /v1/campaigns/cmp_1/pause":             strings.Replace(campaignBody, "draft", "paused", 1),
		"POST /v1/campaigns/cmp_1/resume":            strings.Replace(campaignBody, "draft", "running", 1),
		"POST /v1/campaigns/cmp_1/cancel":            strings.Replace(campaignBody, "draft", "cancelling", 1),
		"GET /v1/campaigns/cmp_1/progress":           progressBody,
		"GET /v1/campaigns/cmp_1/recipients?limit=1": recipientsBody,
		"GET /v1/campaigns/cmp_1/recipients":         strings.Replace(recipientsBody, `"has_more":true,"next_cursor":"c2"`, `"has_more":false`, 1),
		"GET /v1/version":                            `{"version":"1.2.3","go_version":"go1.26","hostname":"relay.example.com"}`,
	}
}

// TestOutput keeps the look of every command in all formats.
func TestOutput(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{
		"queue_list":           "queue list domain=example.com state=deferred",
		"queue_show":           "queue show 0hzx3k9m2q7v5c8d1f40",
		"queue_history":        "queue history to=ann@example.com",
		"why":                  "why 0hzx3k9m2q7v5c8d1f40",
		"queue_stats":          "queue stats",
		"queue_hold":           "queue hold domain=example.com --dry-run",
		"suppression_add":      "suppression add ann@example.com",
		"suppression_remove":   "suppression remove ann@example.com",
		"suppression_check":    "suppression check ann@example.com",
		"suppression_list":     "suppression list",
		"suppression_export":   "suppression export",
		"suppression_import":   "suppression import -",
		"credential_create":    "credential create --domain example.com",
		"credential_list":      "credential list",
		"credential_revoke":    "credential revoke u1",
		"key_create":           "key create --scope all",
		"key_list":             "key list",
		"key_revoke":           "key revoke key_1",
		"domain_add":           "domain add example.com",
		"domain_list":          "domain list",
		"domain_verify":        "domain verify example.com",
		"domain_dkim_rotate":   "domain dkim rotate example.com",
		"domain_dkim_activate": "domain dkim activate example.com r20261",
		"campaign_list":        "campaign list",
		"campaign_show":        "campaign show cmp_1",
		"campaign_show_watch":  "campaign show cmp_1 --watch",
		"campaign_start":       "campaign start cmp_1",
		"campaign_pause":       "campaign pause cmp_1",
		"campaign_resume":      "campaign resume cmp_1",
		"campaign_cancel":      "campaign cancel cmp_1",
		"campaign_recipients":  "campaign recipients cmp_1 --limit 1",
		"campaign_add":         "campaign recipients add cmp_1 -",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, answers())
			for _, format := range []string{"table", "json", "csv"} {
				code, out, errOut := ctl(t, d, "email\n", append(strings.Fields(args), "-o", format)...)
				require.Zero(t, code, errOut)
				require.NotContains(t, out, "\x1b", "terminal escapes")
				require.NotContains(t, out, "\u009b")
				require.NotContains(t, out, "\u202e")
				if format == "json" {
					requireOneValue(t, out)
				}
				golden(t, name+"."+format, out)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, map[string]string{
		"GET /v1/queue/stats": "503 " + `{"title":"Storage unavailable","status":503,"code":"storage_unavailable","detail":"The\nstore is \u001b[31mfull."}`,
	})
	missing := filepath.Join(t.TempDir(), "none")
	for name, c := range map[string]struct {
		args string
		code int
		err  string
	}{
		"no_command":                 {"", 2, "wants a subcommand"},
		"unknown_command":            {"quue", 2, `unknown command "quue" for relayctl, did you mean queue?`},
		"unknown_subcommand":         {"queue lst", 2, "did you mean list"},
		"group_without_subcommand":   {"queue", 2, "wants a subcommand"},
		"unknown_flag":               {"queue list --what", 2, "unknown flag: --what"},
		"missing_argument":           {"queue show", 2, "accepts 1 arg"},
		"too_many_arguments":         {"queue stats now", 2, "unknown command"},
		"unknown_format":             {"queue stats -o xml", 2, "want table, json or csv"},
		"not_an_id":                  {"queue show 12", 2, "not a queue ID"},
		"unknown_word":               {"queue list dmain=x.example", 2, `unknown word "dmain"`},
		"unknown_state":              {"queue list state=lost", 2, "want ready, deferred, held or leased"},
		"word_twice":                 {"queue list to=a@x.example to=b@x.example", 2, "given twice"},
		"words_and_ids":              {"queue hold to=a@x.example 0hzx3k9m2q7v5c8d1f40", 2, "exclude each other"},
		"action_on_nothing":          {"queue fail", 2, "--all"},
		"all_and_words":              {"queue fail --all to=a@x.example", 2, "stands alone"},
		"bad_age":                    {"queue list age>old", 2, "want a duration"},
		"bad_address":                {"suppression add ann", 2, "bad address"},
		"bad_expiry":                 {"suppression add a@x.example --expires soon", 2, "neither a time"},
		"expiry_in_the_past":         {"suppression add a@x.example --expires 2020-01-01T00:00:00Z", 2, "in the past"},
		"key_without_scope":          {"key create", 2, "--scope"},
		"bad_domain":                 {"domain add exa*mple", 2, "bad address"},
		"campaign_without_from":      {"campaign create --subject x", 2, "--from"},
		"campaign_bad_data":          {"campaign create --data x --from a@x.example", 2, "KEY=VALUE"},
		"import_of_unknown_type":     {"suppression import list.xls", 2, "neither csv nor jsonl"},
		"socket_and_url":             {"queue stats --socket x --url http://x", 2, "exclude each other"},
		"url_without_key":            {"queue stats --url http://127.0.0.1:1", 2, "--key-file"},
		"bad_url":                    {"queue stats --url ftp://x --key k", 2, "API address"},
		"spf_without_ip":             {"spf check --mail-from a@x.example", 2, `"ip" not set`},
		"spf_bad_ip":                 {"spf check --ip 1.2.3 --mail-from a@x.example", 2, "not an IP address"},
		"bad_phase":                  {"reply classify 550 --phase lunch", 2, "want connect"},
		"send_bad_server":            {"send --server x --from a@x.example --to b@x.example", 2, "not like"},
		"send_user_without_password": {"send --server x:1 --user u --from a@x.example --to b@x.example", 2, "go together"},
		"send_bad_size":              {"send --server x:1 --size big --from a@x.example --to b@x.example", 2, "want a size"},
		"refused":                    {"queue stats", 1, "storage_unavailable: The; store is ?[31mfull."},
		"not_found":                  {"campaign show cmp_0", 1, "not_found: There is no such thing."},
		"no_socket":                  {"queue stats --socket " + missing, 1, "is relayd running?"},
		"no_daemon":                  {"queue stats --url http://127.0.0.1:1 --key k", 1, "connection refused"},
		"missing_file":               {"campaign create " + missing, 1, "no such file"},
		"missing_key_file":           {"queue stats --url http://127.0.0.1:1 --key-file " + missing, 1, "no such file"},
		"help":                       {"queue --help", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := ctl(t, d, "", strings.Fields(c.args)...)
			require.Equal(t, c.code, code, errOut)
			if c.code == 0 {
				require.Empty(t, errOut)
				return
			}
			require.Empty(t, out, "nothing but the answer goes to standard output")
			require.Contains(t, errOut, c.err)
			require.Equal(t, 1, strings.Count(errOut, "\n"), "one line")
			require.NotContains(t, errOut, "\x1b")
		})
	}
}

func TestEveryCommandHasHelpWithExample(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		require.NotEmpty(t, c.Short, c.CommandPath())
		require.NotEmpty(t, c.Example, c.CommandPath())
		require.Contains(t, c.Example, "relayctl ", c.CommandPath())
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

func TestRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	html := write("promo.html", `<p>{{Name}}</p><img src="cid:p.png">`)
	body := write("body.html", "<b>text</b>")
	picture := write("p.png", "\x89PNG\r\n\x1a\n")
	customers := write("customers.csv", "Email,Name\nann@example.com,Ann\n")
	whole := write("campaign.json", `{"name":"Sale","from":"deals@example.com","template":{"subject":"Hi","html":"<p>x</p>"},"data":{"n":12345678901234567890},"recipients":[{"email":"a@example.com"}]}`)
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"selector_words": {
			[]string{"queue", "list", "domain=EXAMPLE.com", "state=held", "to=a@x.example", "age>2h", "reply=mailbox full"},
			[]string{"GET /v1/queue?domain=example.com&limit=100&older_than_seconds=7200&reply=mailbox+full&state=held&to=a%40x.example"},
		},
		"action_by_selector": {
			[]string{"queue", "hold", "domain=example.com", "--reason", "ticket 12", "--dry-run"},
			[]string{`POST /v1/queue/actions {"action":"hold","selector":{"domain":"example.com"},"dry_run":true,"reason":"ticket 12"}`},
		},
		"action_on_all": {
			[]string{"queue", "retry", "--all"},
			[]string{`POST /v1/queue/actions {"action":"retry","selector":{"all":true}}`},
		},
		"action_by_ids": {
			[]string{"queue", "fail", "0hzx3k9m2q7v5c8d1f40", "0hzx3k9m2q7v5c8d1f40.1a"},
			[]string{`POST /v1/queue/actions {"action":"fail","ids":["0hzx3k9m2q7v5c8d1f40","0hzx3k9m2q7v5c8d1f40.1a"]}`},
		},
		"suppression": {
			[]string{"suppression", "add", "ann@example.com", "--scope", "broadcast", "--reason", "unsubscribe", "--note", "n", "--account", "acme"},
			[]string{`POST /v1/suppressions {"account":"acme","email":"ann@example.com","scope":"broadcast","reason":"unsubscribe","note":"n"}`},
		},
		"campaign_from_flags": {
			[]string{
				"campaign", "create", "--name", "Sale", "--subject", "Hi {{Name}}", "--template", html, "--image", picture,
				"--from", "Shop <deals@example.com>", "--data", "Body=@" + body, "--data", "n=1", "--recipients", customers, "--start",
			},
			[]string{
				`POST /v1/campaigns {"name":"Sale","from":{"email":"deals@example.com","name":"Shop"},"template":{"subject":"Hi {{Name}}",` +
					`"html":"\u003cp\u003e{{Name}}\u003c/p\u003e\u003cimg src=\"cid:p.png\"\u003e","images":[{"name":"p.png","content_type":"image/png","content":"iVBORw0KGgo="}]},` +
					`"data":{"Body":"\u003cb\u003etext\u003c/b\u003e","n":"1"}}`,
				"POST /v1/campaigns/cmp_1/recipients Email,Name\nann@example.com,Ann",
				"POST /v1/campaigns/cmp_1/start",
			},
		},
		"campaign_from_file": {
			[]string{"campaign", "create", whole, "--subject", "Other", "--start"},
			[]string{
				`POST /v1/campaigns {"name":"Sale","from":{"email":"deals@example.com"},"template":{"subject":"Other","html":"\u003cp\u003ex\u003c/p\u003e"},` +
					`"data":{"n":12345678901234567890},"recipients":[{"email":"a@example.com"}],"start":true}`,
			},
		},
		"recipients_page_by_page": {
			[]string{"campaign", "recipients", "cmp_1", "--state", "bounced"},
			[]string{"GET /v1/campaigns/cmp_1/recipients?limit=100&state=bounced"},
		},
		"activate": {
			[]string{"domain", "dkim", "activate", "example.com", "r2"},
			[]string{`POST /v1/domains/example.com/dkim/activate {"selector":"r2"}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, answers())
			code, _, errOut := ctl(t, d, "", c.args...)
			require.Zero(t, code, errOut)
			require.Equal(t, c.want, d.requests())
		})
	}
}

func TestListsFollowTheirCursors(t *testing.T) {
	t.Parallel()
	page := func(n int, next string) string {
		more := fmt.Sprintf(`"has_more":%v,"next_cursor":%q`, next != "", next)
		return `{"data":[` + strings.TrimSuffix(strings.Repeat(suppressed+",", n), ",") + `],` + more + `}`
	}
	d := newDaemon(t, map[string]string{
		"GET /v1/suppressions?limit=1000":           page(1000, "c2"),
		"GET /v1/suppressions?cursor=c2&limit=1000": page(0, "c3"), // a page may be empty and yet not the last
		"GET /v1/suppressions?cursor=c3&limit=1000": page(3, ""),
		"GET /v1/suppressions?cursor=c2&limit=500":  page(500, "c3"),
	})
	for limit, want := range map[string]int{"0": 1003, "1500": 1500} {
		code, out, errOut := ctl(t, d, "", "suppression", "list", "--limit", limit, "-o", "json")
		require.Zero(t, code, errOut)
		var got struct {
			Data    []json.RawMessage `json:"data"`
			HasMore bool              `json:"has_more"`
		}
		require.NoError(t, json.Unmarshal([]byte(out), &got))
		require.Len(t, got.Data, want)
		require.Equal(t, want == 1500, got.HasMore)
	}
}

func TestCampaignStaysADraftWhenTheUploadFails(t *testing.T) {
	t.Parallel()
	a := answers()
	a["POST /v1/campaigns/cmp_1/recipients"] = `422 {"title":"Bad","status":422,"code":"invalid_parameter","detail":"no column holds addresses"}`
	d := newDaemon(t, a)
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, []byte("Hi"), 0o600))
	code, out, errOut := ctl(t, d, "Name\nAnn\n", "campaign", "create", "--subject", "s", "--text", text, "--from", "a@example.com",
		"--recipients", "-", "--start")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Equal(t, "relayctl: campaign cmp_1 stays a draft: invalid_parameter: no column holds addresses\n", errOut)
	require.Len(t, d.requests(), 2, "it was not started")
}

func TestDefaultSocket(t *testing.T) {
	d := newDaemon(t, answers())
	dir := t.TempDir()
	t.Chdir(dir)
	try := func() (int, string) {
		var out, errOut bytes.Buffer
		a := &app{out: &out, err: &errOut, env: func(string) string { return "" }}
		return a.run(t.Context(), []string{"queue", "stats"}), errOut.String()
	}
	code, errOut := try()
	require.Equal(t, 1, code)
	require.Contains(t, errOut, "no relayd found")
	require.NoError(t, os.WriteFile("relayd.toml", []byte("data_dir = \"data\"\n"), 0o600))
	require.NoError(t, os.Mkdir("data", 0o700))
	require.NoError(t, os.Symlink(d.socket, "data/admin.sock"))
	code, errOut = try()
	require.Zero(t, code, errOut)
	require.NoError(t, os.WriteFile("relayd.toml", []byte("data_dir = \"other\"\n[admin]\nsocket = \""+d.socket+"\"\n"), 0o600))
	code, errOut = try()
	require.Zero(t, code, errOut)
	require.NoError(t, os.Remove("relayd.toml"))
	require.NoError(t, os.Mkdir("relayd-data", 0o700))
	require.NoError(t, os.Symlink(d.socket, "relayd-data/admin.sock"))
	code, errOut = try()
	require.Zero(t, code, errOut)
}

func TestKeyFromFile(t *testing.T) {
	t.Parallel()
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		fmt.Fprint(w, `{"queued":1}`)
	}))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("rk_live_1_x\n"), 0o600))
	code, _, errOut := ctl(t, nil, "", "queue", "stats", "--url", s.URL, "--key-file", file)
	require.Zero(t, code, errOut)
	require.Equal(t, "Bearer rk_live_1_x", got)
}
