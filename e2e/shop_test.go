package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/mail"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// shop is a real database with a table of customers, and a relay whose list follows it.
type shop struct {
	*relay
	db     *sql.DB
	server *testutil.Database
}

// openShop starts a database server with 200 customers, and a relay that knows where it is.
func openShop(t *testing.T, start func() (*testutil.Database, error), mxPort int) *shop {
	t.Helper()
	server, err := start()
	if errors.Is(err, testutil.ErrNoServer) && os.Getenv("RELAYD_E2E") != "full" {
		t.Skipf("%v; RELAYD_E2E=full makes this a failure", err)
	}
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	s := &shop{server: server}
	s.db, err = server.Create(t.Context(), "shop")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.db.Close() })
	stamp, touch := "timestamptz", ""
	if server.Driver == "mysql" {
		stamp, touch = "timestamp(6)", " DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6)"
	}
	s.sql("CREATE TABLE customers (id int NOT NULL PRIMARY KEY, email varchar(200) NOT NULL, name varchar(100), gender char(1), " +
		"created_at " + stamp + " NULL, updated_at " + stamp + " NOT NULL" + touch + ", subscribed boolean NOT NULL, deleted_at " + stamp + " NULL)")
	s.sql("CREATE INDEX by_change ON customers (updated_at, id)")
	for i := range 200 {
		s.sql(fmt.Sprintf("INSERT INTO customers VALUES (%d, 'c%d@dest.example', '고객 %d', '%s', '2023-01-05 16:00:00', CURRENT_TIMESTAMP, true, NULL)",
			i, i, i, string("FM"[i%2])))
	}
	// The user may only read.
	if server.Driver == "mysql" {
		s.sql("CREATE USER reader@localhost")
		s.sql("GRANT SELECT ON shop.customers TO reader@localhost")
	} else {
		s.sql("CREATE USER reader")
		s.sql("GRANT SELECT ON customers TO reader")
	}
	s.relay = newRelay(t, options{mxPort: mxPort, env: []string{"SHOP_DSN=" + server.DSN("reader", "shop")}})
	s.mx("dest.example")
	s.domain("shop.example")
	s.call(http.MethodPost, "/v1/lists", map[string]any{"name": "customers"}, nil)
	return s
}

func (s *shop) sql(text string) {
	// s.relay is nil while the table is made: without a test to fail, panic.
	if _, err := s.db.ExecContext(context.Background(), text); err != nil {
		panic(fmt.Sprintf("%s: %v", text, err))
	}
}

// call is one call of the API with full rights.
func (s *shop) call(method, path string, in, out any) {
	s.t.Helper()
	c := s.client()
	defer c.Close()
	require.NoError(s.t, c.Do(s.t.Context(), method, path, nil, in, out))
}

// count is how many contacts of the list have a status.
func (s *shop) counts() (all, subscribed int64) {
	s.t.Helper()
	var l api.ContactList
	s.call(http.MethodGet, "/v1/lists/customers", nil, &l)
	return l.ContactCount, l.SubscribedCount
}

// contact is one contact's attributes.
func (s *shop) contact(email string) (attributes map[string]any, status string) {
	s.t.Helper()
	var c api.Contact
	s.call(http.MethodGet, "/v1/contacts/"+url.PathEscape("email:"+email), nil, &c)
	require.Len(s.t, c.Subscriptions, 1)
	return c.Attributes, c.Subscriptions[0].Status
}

func TestShop(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func() (*testutil.Database, error){"mariadb": testutil.StartMariaDB, "postgres": testutil.StartPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := newSink(t, "", nil)
			s := openShop(t, start, out.port)
			s.followTable()
			s.promote(out)
		})
	}
}

// followTable loads the table in pages of ten and follows its changes.
func (s *shop) followTable() {
	t := s.t
	var src api.Source
	s.json(&src, "source", "add", "crm", "--driver", s.server.Driver, "--dsn-ref", "env:SHOP_DSN", "--list", "customers",
		"--table", "customers", "--column", "email=email", "--column", "attributes.Name=name", "--column", "attributes.Gender=gender",
		"--column", "attributes.CreateTime=created_at", "--column", "status=subscribed", "--deleted", "deleted_at",
		"--page-size", "10", "--safety-lag", "0")
	var test api.SourceTest
	s.json(&test, "source", "test", "crm")
	require.True(t, test.OK)
	require.Equal(t, "by_change", test.IndexUsed)
	require.Equal(t, "microsecond", test.Precision)
	for _, w := range test.Warnings {
		require.NotEqual(t, "writable", w.Code, "the user may only read")
	}
	var run api.SourceRun
	s.json(&run, "source", "sync", "crm")
	require.EqualValues(t, 200, run.Created)
	all, subscribed := s.counts()
	require.EqualValues(t, 200, all)
	require.EqualValues(t, 200, subscribed)
	attributes, status := s.contact("c7@dest.example")
	require.Equal(t, "고객 7", attributes["Name"])
	require.Equal(t, "M", attributes["Gender"])
	require.Equal(t, "2023-01-05T16:00:00.000Z", attributes["CreateTime"])
	require.Equal(t, "subscribed", status)

	s.sql("UPDATE customers SET name = '새 이름', updated_at = CURRENT_TIMESTAMP WHERE id = 7")
	s.sql("UPDATE customers SET deleted_at = CURRENT_TIMESTAMP, updated_at = CURRENT_TIMESTAMP WHERE id = 8")
	s.sql("UPDATE customers SET subscribed = false, updated_at = CURRENT_TIMESTAMP WHERE id = 9")
	s.sql("INSERT INTO customers VALUES (1000, 'broken', 'x', 'F', NULL, CURRENT_TIMESTAMP, true, NULL)")
	s.sql("INSERT INTO customers VALUES (1001, 'new@dest.example', '신규', 'F', NULL, CURRENT_TIMESTAMP, true, NULL)")
	s.json(&run, "source", "sync", "crm")
	require.EqualValues(t, 1, run.Created)
	require.EqualValues(t, 1, run.Updated)
	require.EqualValues(t, 1, run.Deleted)
	require.EqualValues(t, 1, run.Unsubscribed)
	require.EqualValues(t, 1, run.Rejected)
	require.Equal(t, "1000", run.Errors[0].Key)
	require.Equal(t, "invalid_email", run.Errors[0].Code)
	attributes, _ = s.contact("c7@dest.example")
	require.Equal(t, "새 이름", attributes["Name"])
	all, subscribed = s.counts()
	require.EqualValues(t, 200, all)
	require.EqualValues(t, 199, subscribed)

	// After a kill the source goes on from its watermark.
	s.sql("UPDATE customers SET name = '뒤', updated_at = CURRENT_TIMESTAMP WHERE id = 10")
	s.kill()
	s.start()
	s.json(&run, "source", "sync", "crm")
	require.EqualValues(t, 1, run.Updated)
	require.Zero(t, run.Created)

	// A table that is gone: the run fails with its reason, and the watermark stays.
	var before, after api.Source
	s.json(&before, "source", "show", "crm")
	s.sql("ALTER TABLE customers RENAME TO elsewhere")
	_, stderr, code := s.ctl("source", "sync", "crm")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "table_missing")
	s.json(&after, "source", "show", "crm")
	require.Equal(t, before.Watermark, after.Watermark)
	require.Equal(t, "failed", after.State)
	s.sql("ALTER TABLE elsewhere RENAME TO customers")
	s.json(&run, "source", "sync", "crm")
	require.Equal(t, "completed", run.State)
	require.NotContains(t, s.logText(), s.server.DSN("reader", "shop"), "the DSN is in no log")
}

// promote sends a campaign of 100 KB with an image to the list; two unsubscribe; another one goes to the rest.
func (s *shop) promote(out *sink) {
	t := s.t
	image := base64.StdEncoding.EncodeToString(append([]byte("\x89PNG\r\n\x1a\n"), bytes.Repeat([]byte("pixel"), 14_000)...))
	body := map[string]any{
		"name": "Black Friday", "from": map[string]any{"email": "deals@shop.example", "name": "가게"},
		"template": map[string]any{
			"subject": "{{Name}}, 블랙 프라이데이",
			"html": `<p>안녕하세요 {{Name}}</p><img src="cid:banner" alt="반값">{{Body}}<p>` + strings.Repeat("모두 반값입니다. ", 200) +
				`</p><p><a href="{{unsubscribe_url}}">수신 거부</a></p>`,
			"images": []any{map[string]any{"name": "banner", "content_type": "image/png", "content": image}},
		},
		"data":     map[string]any{"Body": "<p>{{Name}}님께만</p>"},
		"audience": map[string]any{"list": "customers"}, "start": true,
	}
	id := s.campaign(body)
	wait(t, "the first campaign", 60*time.Second, func() bool { return s.progress(id).State == "completed" })
	require.Equal(t, 199, s.progress(id).Counts["delivered"])
	require.Equal(t, 199, out.count(), "nobody gets two, and c9 and c8 get none")
	links := map[string]string{}
	for _, d := range out.all() {
		require.Greater(t, len(d.Data), 95_000)
		m, err := mail.ReadMessage(bytes.NewReader(d.Data))
		require.NoError(t, err)
		found := oneClick.FindStringSubmatch(m.Header.Get("List-Unsubscribe"))
		require.Len(t, found, 2)
		links[strings.ToLower(d.To)] = found[1]
	}
	require.Len(t, links, 199)
	require.Equal(t, 2, s.verify(out.all()[0].Data))
	for _, who := range []string{"c1@dest.example", "c2@dest.example"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, links[who], strings.NewReader("List-Unsubscribe=One-Click"))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode)
	}
	// The shop does not know it and says subscribed of both: that changes nothing.
	s.sql("UPDATE customers SET name = '또', updated_at = CURRENT_TIMESTAMP WHERE id IN (1, 2)")
	var run api.SourceRun
	s.json(&run, "source", "sync", "crm")
	body["name"] = "Cyber Monday"
	id = s.campaign(body)
	wait(t, "the second campaign", 60*time.Second, func() bool { return strings.HasPrefix(s.progress(id).State, "completed") })
	p := s.progress(id)
	require.Equal(t, 197, p.Counts["delivered"])
	require.Equal(t, 199+197, out.count())
	for _, d := range out.all()[199:] {
		require.NotContains(t, []string{"c1@dest.example", "c2@dest.example"}, strings.ToLower(d.To))
	}
}
