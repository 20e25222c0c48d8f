package campaign

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// BenchmarkFanOut reports how long a stored list takes from the start of its campaign until all of it is queued, durably
// (target: 1,000,000 in 15 s), the file (target: 700 MB) and the anonymous memory of the process (target: 350 MB) with
// all of it queued. A million is queued only with RELAYD_BENCH_DEEP set.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			if n > 100_000 && os.Getenv("RELAYD_BENCH_DEEP") == "" {
				b.Skip("RELAYD_BENCH_DEEP is not set")
			}
			for range b.N {
				b.StopTimer()
				r := newRig(b)
				c, err := r.Create(b.Context(), "default", request())
				require.NoError(b, err)
				importing := time.Now()
				report, err := r.AddRecipients(b.Context(), "default", c.ID, "text/csv", customers(n), api.ImportOptions{})
				require.NoError(b, err)
				require.EqualValues(b, n, report.Created)
				b.ReportMetric(float64(n)/time.Since(importing).Seconds(), "imported/s")
				r.close()
				r.sync = true
				r.open()
				b.StartTimer()
				start := time.Now()
				_, err = r.Service.Start(b.Context(), "default", c.ID)
				require.NoError(b, err)
				for r.round(b.Context()) == 0 {
				}
				took := time.Since(start)
				b.StopTimer()
				waiting, _, _ := r.store.CampaignStats(c.ID)
				require.Equal(b, n, waiting)
				info, err := os.Stat(filepath.Join(r.dir, "relayd.db"))
				require.NoError(b, err)
				b.ReportMetric(took.Seconds(), "s")
				b.ReportMetric(float64(n)/took.Seconds(), "queued/s")
				b.ReportMetric(float64(info.Size())/(1<<20), "file-MB")
				b.ReportMetric(anonymousMB(b), "anon-MB")
				r.close()
				r.open() // for the clean-up
			}
		})
	}
}

// customers is a CSV of n recipients at 200 domains.
func customers(n int) io.Reader {
	out, in := io.Pipe()
	go func() {
		w := bufio.NewWriterSize(in, 1<<16)
		_, _ = io.WriteString(w, "email,Name\n")
		for i := range n {
			_, _ = fmt.Fprintf(w, "recipient%d@d%d.example.net,Customer Number %d\n", i, i%200, i)
		}
		_ = w.Flush()
		_ = in.Close()
	}()
	return out
}

// anonymousMB is the memory of the process that is not the page cache's.
func anonymousMB(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("RssAnon:"))
	kb, err := strconv.Atoi(strings.Fields(string(rest))[0])
	require.NoError(b, err)
	return float64(kb) / 1024
}
