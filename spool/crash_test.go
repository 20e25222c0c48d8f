package spool_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// crashPath names the store in the environment of the child.
const crashPath = "SPOOL_CRASH_PATH"

// crashChild, in the child process of TestKillLosesNothing, commits, leases and settles until it is killed. It prints
// each step as soon as it is done. In any other process it does nothing.
func crashChild() {
	path := os.Getenv(crashPath)
	if path == "" {
		return
	}
	if err := crashLoad(path); err != nil {
		fmt.Println("error", err)
	}
	os.Exit(1)
}

// report prints one line; the pipe has it when it returns.
type report struct{ mu sync.Mutex }

func (r *report) say(word string, id mail.EnvelopeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Println(word, id)
}

func crashLoad(path string) error {
	db, err := kv.OpenBolt(path, kv.BoltOptions{})
	if err != nil {
		return err
	}
	log, err := event.Open(db, nil)
	if err != nil {
		return err
	}
	s, err := spool.Open(context.Background(), db, log, spool.Config{})
	if err != nil {
		return err
	}
	r := &report{}
	errs := make(chan error, 16)
	for w := range 6 {
		go func() { errs <- crashProduce(s, r, w) }()
	}
	for range 4 {
		go func() { errs <- crashDeliver(s, r) }()
	}
	return <-errs
}

func crashProduce(s *spool.Store, r *report, w int) error {
	for i := 0; ; i++ {
		now := time.Now()
		m := &spool.Message{ID: mail.NewQueueID(now), AcceptedAt: now, Header: []byte("Subject: x\r\n"), MessageID: "<x>"}
		var envs []*spool.Envelope
		for n := range 1 + i%3 {
			q := spool.Queue{Account: "a", Stream: "s", Domain: fmt.Sprintf("d%d.example", (w+n)%4)}
			envs = append(envs, &spool.Envelope{
				ID: mail.EnvelopeID{Message: m.ID, N: uint64(n)}, Queue: q, To: mail.Path{Local: "u", Domain: q.Domain}, NextAttempt: now,
			})
		}
		body := s.NewBody(context.Background(), m.ID)
		size := 1000
		if i%20 == 7 {
			size = 600_000
		}
		if _, err := body.Write(bodyOf(m.ID, size)); err != nil {
			return err
		}
		if err := s.Commit(context.Background(), m, body, envs, nil); err != nil {
			return err
		}
		for _, e := range envs {
			r.say("committed", e.ID)
		}
	}
}

// bodyOf is a body that tells whose it is.
func bodyOf(id mail.QueueID, size int) []byte { return bytes.Repeat(id[:], 1+size/len(id)) }

func crashDeliver(s *spool.Store, r *report) error {
	for n := 0; ; n++ {
		queues := s.Take(time.Now(), 2)
		l, err := s.Lease(context.Background(), queues, time.Now(), 7)
		if err != nil {
			return err
		}
		var results []spool.Result
		for i, e := range l.Envelopes {
			result := spool.Result{ID: e.ID, Outcome: spool.Delivered, Presented: true, Reply: accepted}
			if e.Attempts == 0 && (n+i)%4 == 0 {
				result.Outcome, result.NextAttempt = spool.Deferred, time.Now().Add(20*time.Millisecond)
			} else {
				r.say("delivered", e.ID) // the remote host has said 250; the crash window opens
			}
			results = append(results, result)
		}
		if err := s.Settle(context.Background(), l, results); err != nil {
			return err
		}
		for _, result := range results {
			if result.Outcome == spool.Delivered {
				r.say("settled", result.ID)
			}
		}
		for _, q := range queues {
			s.Return(q, time.Time{})
		}
		if len(queues) == 0 {
			<-time.After(time.Millisecond)
		}
	}
}

func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "spool.db")
	told := map[string]map[mail.EnvelopeID]int{"committed": {}, "delivered": {}, "settled": {}}
	for round := range 6 {
		crashOnce(t, path, 200+137*round, told)
		s, db := openStore(t, path, false)
		checkAfterCrash(t, s, db, told)
		require.NoError(t, db.Close())
	}
}

func crashOnce(t *testing.T, path string, after int, told map[string]map[mail.EnvelopeID]int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), crashPath+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	n := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, text, _ := strings.Cut(lines.Text(), " ")
		require.NotNil(t, told[word], lines.Text())
		id, err := mail.ParseEnvelopeID(text)
		require.NoError(t, err)
		told[word][id]++
		if n++; n == after {
			require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
		}
	}
	require.Error(t, cmd.Wait())
	require.GreaterOrEqual(t, n, after, "the child ended by itself")
}

func checkAfterCrash(t *testing.T, s *spool.Store, db kv.DB, told map[string]map[mail.EnvelopeID]int) {
	t.Helper()
	live := map[mail.EnvelopeID]spool.Info{}
	for cursor := ""; ; {
		page, next, err := s.List(t.Context(), spool.Selector{}, cursor, 1000)
		require.NoError(t, err)
		for _, info := range page {
			live[info.Envelope.ID] = info
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	done := map[mail.EnvelopeID]bool{}
	require.NoError(t, db.View(t.Context(), func(tx kv.Tx) error {
		return tx.Scan("outcome", nil, nil, func(k, _ []byte) (bool, error) {
			id, err := mail.EnvelopeIDFromKey(k)
			done[id] = true
			return true, err
		})
	}))
	for id := range told["committed"] {
		_, waits := live[id]
		require.NotEqual(t, waits, done[id], "%s: live %v, finished %v", id, waits, done[id])
	}
	for id := range told["settled"] {
		require.True(t, done[id], "%s was settled", id)
	}
	for id := range told["delivered"] {
		if info, ok := live[id]; ok {
			require.Positive(t, info.Envelope.InDoubt, "%s may be delivered twice, and is not in doubt", id)
		}
	}
	for id := range live {
		var body bytes.Buffer
		_, err := s.WriteBody(t.Context(), id.Message, io.Writer(&body))
		require.NoError(t, err)
		require.True(t, bytes.Equal(body.Bytes(), bodyOf(id.Message, body.Len()-len(id.Message))), "body of %s", id)
	}
	stats, err := s.Stats(t.Context())
	require.NoError(t, err)
	require.Len(t, live, int(stats.Queued))
	require.Equal(t, stats.Accepted, stats.Queued+stats.Outcomes["delivered"])
}
