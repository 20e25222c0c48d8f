package intake

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/mail"
)

// TestB5SenderDomains: reverse-path and From must both be of a domain that the credential may use, in every spelling.
// What else a From field may try stands in TestRefusals.
func TestB5SenderDomains(t *testing.T) {
	t.Parallel()
	f := open(t)
	for name, c := range map[string]struct {
		path, from string
		ok         bool
	}{
		"both":                         {"a@example.com", "a@example.com", true},
		"case":                         {"a@EXAMPLE.com", "A@Example.COM", true},
		"trailing dot":                 {"a@example.com.", "a@example.com", true},
		"another domain of its own":    {"a@example.com", "a@unsigned.example", true},
		"IDN as U-label":               {"a@bücher.example", "a@xn--bcher-kva.example", true},
		"reverse-path of another":      {"a@other.example", "a@example.com", false},
		"From of another":              {"a@example.com", "a@other.example", false},
		"subdomain in reverse-path":    {"a@sub.example.com", "a@example.com", false},
		"parent in reverse-path":       {"a@com.example", "a@example.com", false},
		"suffix":                       {"a@notexample.com", "a@example.com", false},
		"quoted local part":            {`"b@victim.example"@example.com`, `"b@victim.example"@example.com`, true},
		"literal":                      {"a@[192.0.2.1]", "a@example.com", false},
		"look-alike letter":            {"a@ex\u0430mple.com", "a@example.com", false},
		"full-width letters, one name": {"a@\uff45xample.com", "a@example.com", true},
	} {
		p, err := mail.ParsePath(c.path)
		if err != nil {
			require.False(t, c.ok, "%s: %v", name, err)
			continue
		}
		s := submission("From: " + c.from + "\r\nSubject: x\r\n\r\nHello\r\n")
		s.ReversePath = p
		_, err = f.Accept(t.Context(), s)
		require.Equal(t, c.ok, err == nil, "%s: %v", name, err)
		if err != nil {
			require.Equal(t, "5.7.1", mail.ReplyOf(err).Status.String(), name)
		}
		if at := p.Domain; !c.ok && at != "example.com" {
			require.Error(t, f.CheckSender(account.Credential{Account: "default"}, at), name)
		}
	}
	narrow := submission(head + "\r\nHello\r\n")
	narrow.Domains = []string{"unsigned.example"}
	_, err := f.Accept(t.Context(), narrow)
	require.ErrorContains(t, err, "not one that this credential may use")
}
