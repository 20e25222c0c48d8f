package spool

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

func TestParseSelector(t *testing.T) {
	t.Parallel()
	id := mail.NewQueueID(time.Now())
	for text, want := range map[string]Selector{
		"":                                    {},
		"  ":                                  {},
		"domain=Example.COM state=deferred":   {Domain: "example.com", State: "deferred"},
		"age>2h age<3d":                       {OlderThan: 2 * time.Hour, NewerThan: 72 * time.Hour},
		"age>1d12h30m":                        {OlderThan: 36*time.Hour + 30*time.Minute},
		`reply="mailbox full"  class=bulk`:    {Reply: "mailbox full", Class: "bulk"},
		`reply="say \"no\""`:                  {Reply: `say "no"`},
		"from=<>":                             {Sender: "<>"},
		"from=@Example.com":                   {Sender: "@example.com"},
		"from=a@example.com to=b@example.net": {Sender: "a@example.com", Recipient: "b@example.net"},
		"site=mx.example.com state=held":      {Site: "mx.example.com", State: "held"},
		"account=a stream=s campaign=c":       {Account: "a", Stream: "s", Campaign: "c"},
		"id=" + id.String() + " id=" + id.String() + ".1z": {
			Messages: []mail.QueueID{id}, Envelopes: []mail.EnvelopeID{{Message: id, N: 71}},
		},
	} {
		got, err := ParseSelector(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseSelector(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, want, again)
		require.Equal(t, got.String() == "", got.IsZero())
	}
}

func TestParseSelectorTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nonsense":                         `"nonsense" is not a term`,
		"=x":                               `"=x" is not a term`,
		"colour=red":                       `unknown term "colour"`,
		"domain=":                          "domain has no value",
		"domain=a b=c":                     `unknown term "b"`,
		"domain=exa mple":                  `"mple" is not a term`,
		"domain>example.com":               "domain takes =, not >",
		"state=bouncy":                     "state=bouncy: not one of ready, deferred, held, leased",
		"state=finished":                   "not one of",
		"class=first":                      "not one of urgent, transactional, bulk",
		"age=2h":                           "age takes > or <, not =",
		"age>soon":                         `age "soon": not a duration`,
		"age>-1h":                          `age "-1h": not a duration`,
		"age>0s":                           "not above zero",
		"age>99999999d":                    "not a duration",
		"age>1h age>2h":                    "age is given twice",
		"domain=a.de domain=b.de":          "domain is given twice",
		`reply="open`:                      "reply: quote without end",
		`reply="a"b`:                       "no blank behind the quoted value",
		"site=":                            "site has no value",
		"site=" + strings.Repeat("x", 256): "site is longer than 255 bytes",
		"id=xyz":                           "id=xyz: not a queue ID",
		"to=nobody":                        "to=nobody: ",
		"state=held domain=bad..name":      "domain=bad..name: ",
	} {
		_, err := ParseSelector(text)
		require.ErrorIs(t, err, ErrSelector, text)
		require.ErrorContains(t, err, want)
	}
}

func FuzzParseSelector(f *testing.F) {
	f.Add(`domain=example.com state=deferred age>2h reply="mailbox full" from=<> id=0123456789abcdefghjk`)
	f.Add(`to="a b"@example.com age<1d2h`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			require.ErrorIs(t, err, ErrSelector)
			return
		}
		again, err := ParseSelector(s.String())
		require.NoError(t, err, "%q", s.String())
		require.Equal(t, s, again)
	})
}
