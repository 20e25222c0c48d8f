package campaign

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/intake"
	"relayd/internal/mail"
	"relayd/spool"
)

// submit hands a message in as an SMTP session does.
func (r *rig) submit(message string, to ...string) (mail.QueueID, error) {
	from, err := mail.ParsePath("deals@shop.example")
	require.NoError(r.t, err)
	sub := &intake.Submission{
		Account: "default", Class: spool.Transactional, ReversePath: from, Trace: intake.Trace{With: "ESMTPSA", At: r.now()},
		Body: strings.NewReader(strings.ReplaceAll(message, "\n", "\r\n")),
	}
	for _, text := range to {
		p, err := mail.ParsePath(text)
		require.NoError(r.t, err)
		sub.Recipients = append(sub.Recipients, intake.Recipient{To: p})
	}
	return r.in.Accept(r.t.Context(), sub)
}

const winterSale = `From: Shop <deals@shop.example>
To: undisclosed-recipients:;
Subject: =?utf-8?q?Hello_{{Name}}_=E2=98=83?=
Message-ID: <one@shop.example>
X-Relay-Campaign: Winter sale
%sMIME-Version: 1.0
Content-Type: multipart/related; boundary=r

--r
Content-Type: multipart/alternative; boundary=a

--a
Content-Type: text/plain; charset=euc-kr
Content-Transfer-Encoding: base64

vsiz58fPvLy/5CB7e05hbWV9fQ==
--a
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<html><body><p>Hi {{Name}}</p><img src=3D"cid:logo@x" alt=3D"logo"></body><=
/html>
--a--
--r
Content-Type: image/gif
Content-ID: <logo@x>
Content-Transfer-Encoding: base64

R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7
--r--
`

func TestSubmittedMessageBecomesACampaign(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.audience("customers", member("ann@a.example", "Ann", ""), member("bob@b.example", "밥", ""))
	id, err := r.submit(fmt.Sprintf(winterSale, ""), "ann@a.example", "bob@b.example")
	require.NoError(t, err)
	again, err := r.submit(fmt.Sprintf(winterSale, ""), "ann@a.example", "bob@b.example")
	require.NoError(t, err)
	require.Equal(t, id, again, "a client that lost our reply gets the same campaign")
	page, err := r.List(t.Context(), "default", "", 10)
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	c := page.Data[0]
	require.Equal(t, formatID(id), c.ID)
	require.Equal(t, "Winter sale", c.Name)
	r.fan()
	seen := map[string]bool{}
	r.deliver(10, func(msg []byte, e *spool.Envelope) spool.Result {
		text := string(msg)
		seen[e.To.Local] = true
		require.Contains(t, text, "To: "+e.To.String()+"\r\n")
		require.Contains(t, text, "List-Unsubscribe: <https://u.shop.example/u/")
		require.NotContains(t, strings.ToLower(text), "x-relay")
		require.NotContains(t, text, "{{")
		require.Contains(t, text, "Content-ID: <logo@x>")
		for _, v := range r.verify(msg) {
			require.Equal(t, "pass", v.Result, v.Error)
		}
		return delivered(msg, e)
	})
	require.Equal(t, map[string]bool{"ann": true, "bob": true}, seen)
	require.Equal(t, Completed, r.progress(c.ID).State)
}

func TestSubmittedMessageGoesToAList(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.audience("customers", member("ann@a.example", "Ann", ""), member("bob@b.example", "Bob", ""))
	id, err := r.submit(fmt.Sprintf(winterSale, "X-Relay-List: customers\nX-Relay-TTL: 7200\nX-Relay-Tags: season:winter\n"), "deals@shop.example")
	require.NoError(t, err)
	r.waitFor(formatID(id), Running)
	r.fan()
	got := map[string]bool{}
	r.deliver(10, func(msg []byte, e *spool.Envelope) spool.Result {
		got[e.To.String()] = true
		return delivered(msg, e)
	})
	require.Equal(t, map[string]bool{"ann@a.example": true, "bob@b.example": true}, got, "and not to the address that stood in RCPT")
	c, err := r.Get(t.Context(), "default", formatID(id))
	require.NoError(t, err)
	require.Equal(t, int64(7200), c.Send.TTLSeconds)
	require.Equal(t, map[string]string{"season": "winter"}, c.Tags)
}

func TestSubmittedMessageMaySayWhen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.audience("customers", member("ann@a.example", "Ann", ""))
	id, err := r.submit(fmt.Sprintf(winterSale, "X-Relay-Send-At: 2026-11-20T12:00:00Z\nX-Relay-List: customers\n"), "deals@shop.example")
	require.NoError(t, err)
	require.Equal(t, Scheduled, r.progress(formatID(id)).State)
	r.pass(3 * time.Hour)
	r.waitFor(formatID(id), Running)
}

func TestSubmittedCampaignThatIsWrongIsRefusedAtTheDot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.audience("customers", member("ann@a.example", "Ann", ""))
	for name, one := range map[string]struct {
		message, want string
		to            []string
	}{
		"no_such_list":     {fmt.Sprintf(winterSale, "X-Relay-List: clients\n"), `no list "clients" in this account`, []string{"deals@shop.example"}},
		"list_and_others":  {fmt.Sprintf(winterSale, "X-Relay-List: customers\n"), "stands in place of recipients", []string{"ann@a.example", "bob@b.example"}},
		"list_alone":       {strings.Replace(fmt.Sprintf(winterSale, "X-Relay-List: customers\n"), "X-Relay-Campaign: Winter sale\n", "", 1), "goes with X-Relay-Campaign", []string{"deals@shop.example"}},
		"name_empty":       {strings.Replace(fmt.Sprintf(winterSale, ""), "Winter sale", "", 1), "X-Relay-Campaign: give a name", []string{"ann@a.example"}},
		"name_twice":       {fmt.Sprintf(winterSale, "X-Relay-Campaign: again\n"), "stands more than once", []string{"ann@a.example"}},
		"missing_variable": {fmt.Sprintf(winterSale, ""), `needs "Name"`, []string{"stranger@a.example"}},
		"attachment": {
			strings.Replace(fmt.Sprintf(winterSale, ""), "Content-Type: image/gif", "Content-Type: application/pdf", 1), "a part of type application/pdf", []string{"ann@a.example"},
		},
		"open_block":      {strings.Replace(fmt.Sprintf(winterSale, ""), "Hi {{Name}}", "Hi {{#if Name}}", 1), "if", []string{"ann@a.example"}},
		"unknown_charset": {strings.Replace(fmt.Sprintf(winterSale, ""), "euc-kr", "klingon", 1), "klingon", []string{"ann@a.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.submit(one.message, one.to...)
			e, ok := errors.AsType[*mail.Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, "554 5.6.0", fmt.Sprintf("%d %s", e.Reply.Code, e.Reply.Status))
			require.Contains(t, e.Reply.Text, one.want)
			page, err := r.List(t.Context(), "default", "", 10)
			require.NoError(t, err)
			require.Empty(t, page.Data, "nothing is stored")
		})
	}
}

func FuzzSubmittedCampaign(f *testing.F) {
	f.Add([]byte(strings.ReplaceAll(fmt.Sprintf(winterSale, ""), "\n", "\r\n")))
	f.Add([]byte("From: a@b.example\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n--x--"))
	s := &Service{now: time.Now}
	f.Fuzz(func(t *testing.T, message []byte) {
		req, err := s.requestOf(t.Context(), &intake.Broadcast{Message: message})
		if err != nil {
			require.ErrorAs(t, err, new(*Invalid))
			return
		}
		require.True(t, req.Start)
	})
}
