package campaign

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/mail"
	"relayd/spool"
)

func mustPath(s string) mail.Path { return mail.MustParsePath(s) }

func TestToken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k, err := openTokenKeys(dir)
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(dir, tokenKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	c := claim{campaign: mail.QueueID{1, 2}, account: "default", address: "ann@example.com"}
	token := k.seal(forUnsubscribe, c)
	require.Equal(t, token, k.seal(forUnsubscribe, c), "the same for every attempt")
	require.Equal(t, strings.ToLower(token), token)
	got, err := k.open(forUnsubscribe, token)
	require.NoError(t, err)
	require.Equal(t, c, got)
	got, err = k.open(forUnsubscribe, strings.ToUpper(token))
	require.NoError(t, err, "gateways change the case of addresses")
	require.Equal(t, c, got)

	raw, err := tokenText.DecodeString(token)
	require.NoError(t, err)
	require.NotContains(t, string(raw), c.address)
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			_, err := k.open(forUnsubscribe, tokenText.EncodeToString(raw))
			require.ErrorIs(t, err, ErrBadToken, "byte %d bit %d", i, bit)
			raw[i] ^= 1 << bit
		}
	}
	_, err = k.open(2, token)
	require.ErrorIs(t, err, ErrBadToken, "another purpose")
	for _, bad := range []string{"", "a", token[:len(token)-1], token + "a", token[1:], strings.Repeat("a", 5000), "!" + token} {
		_, err := k.open(forUnsubscribe, bad)
		require.ErrorIs(t, err, ErrBadToken)
	}

	require.NoError(t, k.Rotate())
	newer := k.seal(forUnsubscribe, c)
	require.NotEqual(t, token, newer)
	again, err := openTokenKeys(dir)
	require.NoError(t, err)
	for _, one := range []string{token, newer} {
		got, err := again.open(forUnsubscribe, one)
		require.NoError(t, err, "old keys go on working")
		require.Equal(t, c, got)
	}
	require.Equal(t, newer, again.seal(forUnsubscribe, c))
	other, err := openTokenKeys(t.TempDir())
	require.NoError(t, err)
	_, err = other.open(forUnsubscribe, token)
	require.ErrorIs(t, err, ErrBadToken)
}

func TestTokenKeyFileIsChecked(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		mode    os.FileMode
		content string
		want    string
	}{
		"open_to_others": {0o644, "1 " + strings.Repeat("ab", 32), "chmod 600"},
		"short":          {0o600, "1 abcd", "line 1: does not hold a key"},
		"no_number":      {0o600, "# c\n\nx " + strings.Repeat("ab", 32), "line 3: does not begin"},
		"twice":          {0o600, strings.Repeat("1 "+strings.Repeat("ab", 32)+"\n", 2), "line 2: key 1 is there twice"},
		"empty":          {0o600, "", "holds no key"},
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, tokenKeyFile), []byte(tt.content), tt.mode))
		_, err := openTokenKeys(dir)
		require.ErrorContains(t, err, tt.want, name)
	}
}

func FuzzToken(f *testing.F) {
	k, err := openTokenKeys(f.TempDir())
	require.NoError(f, err)
	f.Add(k.seal(forUnsubscribe, claim{campaign: mail.QueueID{1}, account: "default", address: "a@b.example"}))
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := k.open(forUnsubscribe, s); err == nil {
			require.Equal(t, strings.ToLower(s), k.seal(forUnsubscribe, c))
		}
	})
}

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request(to("Ann@example.com", "Ann")))
	require.NoError(t, err)
	r.fan()
	var link string
	r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		link = strings.Trim(header(t, msg).Get("List-Unsubscribe"), "<>")
		leaves, _ := parts(t, msg)
		require.Contains(t, leaves["text/html"], `href="`+link+`"`)
		require.Contains(t, leaves["text/plain"], link)
		return delivered(msg, e)
	})
	url, err := r.UnsubscribeURL("default", c.ID, mustPath("Ann@example.com"))
	require.NoError(t, err)
	require.Equal(t, url, link)
	token := link[strings.LastIndexByte(link, '/')+1:]
	u, err := r.ParseToken(token)
	require.NoError(t, err)
	require.Equal(t, Unsubscribed{Account: "default", Address: "Ann@example.com", Campaign: c.ID}, u)
	require.Equal(t, "A***@example.com", u.Masked())
	require.Equal(t, "***", Unsubscribed{}.Masked())
	entry, err := r.list.Check(ctx, "default", mustPath("ann@example.com"), true)
	require.NoError(t, err)
	require.Nil(t, entry, "reading a token changes nothing")

	for i := range 3 {
		u, err = r.Unsubscribe(ctx, token)
		require.NoError(t, err)
		require.Equal(t, i == 0, u.Created)
	}
	r.reopen()
	entry, err = r.list.Check(ctx, "default", mustPath("ann@EXAMPLE.com"), true)
	require.NoError(t, err)
	require.Equal(t, "unsubscribe", entry.Reason)
	require.Equal(t, c.ID, entry.Source)
	entry, err = r.list.Check(ctx, "default", mustPath("ann@example.com"), false)
	require.NoError(t, err)
	require.Nil(t, entry, "transactional mail goes on")
	entry, err = r.list.Check(ctx, "other", mustPath("ann@example.com"), true)
	require.NoError(t, err)
	require.Nil(t, entry, "of this account only")
	events, _, err := r.log.List(ctx, event.Filter{Type: "contact.unsubscribed"}, "", 10)
	require.NoError(t, err)
	require.Len(t, events, 1)
	_, err = r.Unsubscribe(ctx, "x"+token)
	require.ErrorIs(t, err, ErrBadToken)

	again, err := r.Create(ctx, "default", request(to("ann@example.com", "Ann"), to("bob@example.com", "Bob")))
	require.NoError(t, err)
	r.fan()
	require.Equal(t, 1, r.deliver(10, delivered))
	require.Equal(t, int64(1), r.progress(again.ID).Counts.Unsubscribed)
}
