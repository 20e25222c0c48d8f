package delivery

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

func chunkedSession(t *testing.T, mx *testutil.MX) *Session {
	t.Helper()
	mx.Start(t)
	s, err := newOpener().open(t.Context(), target{host: "mx.test", addr: mx.AddrPort(), chunking: true})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestChunksCarryTheMessage(t *testing.T) {
	t.Parallel()
	long := "Subject: x\r\n\r\n" + strings.Repeat(".a line that begins with a dot\r\n", 30_000)
	for _, ext := range [][]string{{"PIPELINING", "CHUNKING"}, {"CHUNKING"}} {
		for name, text := range map[string][2]string{
			"short":       {"Subject: x\r\n\r\n.dot\r\n", "Subject: x\r\n\r\n.dot\r\n"},
			"long":        {long, long},
			"no_last_end": {"Subject: x\r\n\r\nend", "Subject: x\r\n\r\nend\r\n"},
			"stray":       {"Subject: x\r\n\r\na\rb\nc\x00d\r", "Subject: x\r\n\r\na\r\nb\r\ncd\r\n"},
		} {
			t.Run(name+"_"+ext[0], func(t *testing.T) {
				t.Parallel()
				mx := &testutil.MX{Extensions: ext}
				s := chunkedSession(t, mx)
				for range 2 {
					answers, err := s.Send(t.Context(), message(text[0], "one@x.example", "two@x.example"))
					require.NoError(t, err)
					require.True(t, answers[0].Reply.Positive() && answers[1].Reply.Positive())
				}
				for _, m := range mx.Mails() {
					require.Equal(t, text[1], string(m.Data))
				}
				require.Len(t, mx.Mails(), 2)
				require.Empty(t, mx.Faults())
				for _, c := range mx.Commands() {
					require.NotEqual(t, "DATA", c)
				}
			})
		}
	}
}

func TestChunkThatIsRefusedLeavesTheSessionGood(t *testing.T) {
	t.Parallel()
	long := "Subject: x\r\n\r\n" + strings.Repeat("a line\r\n", 100_000)
	for verb, text := range map[string]string{"BDAT": long, "DOT": "Subject: x\r\n\r\n", "RCPT": "Subject: x\r\n\r\n", "MAIL": "Subject: x\r\n\r\n"} {
		for _, ext := range [][]string{{"PIPELINING", "CHUNKING"}, {"CHUNKING"}} {
			t.Run(verb+"_"+ext[0], func(t *testing.T) {
				t.Parallel()
				mx := &testutil.MX{Extensions: ext, Rule: first(1, verb, testutil.Act{Reply: "554 5.6.0 no"})}
				s := chunkedSession(t, mx)
				answers, err := s.Send(t.Context(), message(text, "one@x.example"))
				require.NoError(t, err)
				require.Equal(t, 554, answers[0].Reply.Code)
				answers, err = s.Send(t.Context(), message("Subject: second\r\n\r\n", "one@x.example"))
				require.NoError(t, err)
				require.Equal(t, 250, answers[0].Reply.Code)
				require.Len(t, mx.Mails(), 1)
			})
		}
	}
}

func TestLostReplyToTheLastChunkIsInDoubt(t *testing.T) {
	t.Parallel()
	s := chunkedSession(t, &testutil.MX{Extensions: []string{"CHUNKING"}, Rule: on("DOT", testutil.Act{Drop: true})})
	_, err := s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
	require.Equal(t, faultInDoubt, faultOf(err).kind)
}

func TestHostWithoutChunkingGetsData(t *testing.T) {
	t.Parallel()
	mx := &testutil.MX{Extensions: []string{"PIPELINING"}}
	s := chunkedSession(t, mx)
	_, err := s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
	require.NoError(t, err)
	require.Contains(t, mx.Commands(), "DATA")
}
