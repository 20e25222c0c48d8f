package smtpd

import (
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// counted is how many failed AUTH commands of this machine, and for a user name, are remembered, and how many the log
// tells.
func (f *fixture) counted(username string) [3]int {
	f.limits.mu.Lock()
	defer f.limits.mu.Unlock()
	return [3]int{
		f.limits.failed[sourceOf(mustAddr("127.0.0.1"))].count, f.limits.guessed[sha256.Sum256([]byte(username))].count,
		strings.Count(f.log.String(), "msg=auth.failed"),
	}
}

// TestB4_HangingUpIsNoWayToGuessForFree: a client that leaves as soon as it has given a wrong secret, or has read the first
// word about it, has failed like any other; and before it gives one there is nothing to learn.
func TestB4_HangingUpIsNoWayToGuessForFree(t *testing.T) {
	t.Parallel()
	const token = "\x01auth=Bearer a.b.c\x01\x01"
	reason := "334 " + b64(`{"status":"invalid_token"}`)
	for name, tc := range map[string]struct {
		do   func(t *testing.T, c *client, token string)
		want [3]int // by address, by user name, by the log
	}{
		"plain_unread":   {func(_ *testing.T, c *client, _ string) { c.send("AUTH PLAIN " + plainIR("app", "x") + "\r\n") }, [3]int{1, 1, 1}},
		"plain_in_steps": {func(_ *testing.T, c *client, _ string) { c.send("AUTH PLAIN\r\n" + plainIR("app", "x") + "\r\n") }, [3]int{1, 1, 1}},
		"plain_prompt":   {func(_ *testing.T, c *client, _ string) { c.cmd("AUTH PLAIN", "334") }, [3]int{}},
		"plain_pipelined": {func(_ *testing.T, c *client, _ string) { // the third ends the session
			c.send(strings.Repeat("AUTH PLAIN "+plainIR("app", "x")+"\r\n", 5))
		}, [3]int{3, 3, 3}},
		"login_unread": {func(_ *testing.T, c *client, _ string) {
			c.send("AUTH LOGIN " + b64("app") + "\r\n" + b64("x") + "\r\n")
		}, [3]int{1, 1, 1}},
		"login_prompt":  {func(_ *testing.T, c *client, _ string) { c.cmd("AUTH LOGIN "+b64("app"), "334") }, [3]int{}},
		"bearer_unread": {func(_ *testing.T, c *client, _ string) { c.send("AUTH OAUTHBEARER " + b64("n,,"+token) + "\r\n") }, [3]int{1, 0, 1}},
		"bearer_reason": {func(_ *testing.T, c *client, _ string) { c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason) }, [3]int{1, 0, 1}},
		"bearer_another": {func(_ *testing.T, c *client, token string) {
			c.cmd("AUTH OAUTHBEARER "+b64("n,a=other,\x01auth=Bearer "+token+"\x01\x01"), reason)
		}, [3]int{1, 1, 1}},
		"bearer_cut_off": {func(_ *testing.T, c *client, _ string) {
			c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason)
			c.send("AQ=")
		}, [3]int{1, 0, 1}},
		"bearer_answered": {func(_ *testing.T, c *client, _ string) {
			c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason)
			c.cmd("AQ==", "535")
		}, [3]int{1, 0, 1}},
		"bearer_answered_unread": {func(_ *testing.T, c *client, _ string) {
			c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason)
			c.send("AQ==\r\n")
		}, [3]int{1, 0, 1}},
		"bearer_twice": {func(_ *testing.T, c *client, _ string) {
			c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason)
			c.cmd("AQ==", "535")
			c.cmd("AUTH OAUTHBEARER "+b64("n,,"+token), reason)
		}, [3]int{2, 0, 2}},
		"scram_unread": {func(t *testing.T, c *client, _ string) {
			require.Empty(t, c.scramProof(scramSHA256, "n,,", nil, "app", "x"))
		}, [3]int{1, 1, 1}},
		"scram_challenge": {func(_ *testing.T, c *client, _ string) { c.cmd("AUTH SCRAM-SHA-256 "+b64("n,,n=app,r=x"), "334") }, [3]int{}},
		"scram_right_and_gone": {func(t *testing.T, c *client, _ string) { // who has the password may do what he likes
			require.Empty(t, c.scramProof(scramSHA256, "n,,", nil, "app", "secret"))
			c.expect("334")
		}, [3]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, token := startOAuth(t)
			c := f.dial(t, implicit)
			c.upgrade()
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			tc.do(t, c, token)
			require.NoError(t, c.Close())
			require.Eventually(t, func() bool {
				return strings.Contains(f.log.String(), "msg=session.closed")
			}, time.Minute, time.Millisecond)
			require.Equal(t, tc.want, f.counted("app"))
		})
	}
}

// TestB4_TheFirstWordAboutATokenIsHeldBack: it tells as much as the reply behind it, which is not held back again.
func TestB4_TheFirstWordAboutATokenIsHeldBack(t *testing.T) {
	change, _ := issuerOf(t)
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, _ chan struct{}) {
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		for _, held := range []time.Duration{time.Second, 2 * time.Second} {
			began := time.Now()
			c.cmd("AUTH OAUTHBEARER "+b64("n,,\x01auth=Bearer a.b.c\x01\x01"), "334")
			require.Equal(t, held, time.Since(began))
			c.cmd("AQ==", "535 5.7.8")
			require.Equal(t, held, time.Since(began))
		}
		c.cmd("AUTH OAUTHBEARER "+b64("n,,\x01auth=Bearer a.b.c\x01\x01"), "334")
		c.cmd("*", "421 4.7.0")
		rest, _ := io.ReadAll(c.r)
		require.Empty(t, string(rest))
	}, change, func(c *Config) { c.AuthDelay = 32 * time.Second })
}
