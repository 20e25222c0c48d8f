package contact

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// syntheticCSV makes n rows in an order that has nothing to do with that of the addresses.
func syntheticCSV(n int) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, 64<<10)
		random := rand.New(rand.NewPCG(1, 2))
		_, _ = b.WriteString("Email,Name,Gender,CreateTime,SubscriptionStatus\n")
		for i := range n {
			_, err := fmt.Fprintf(b, "user%08x.%d@mail%d.example,Customer %d,%s,2023-%02d-%02d 16:00:00,true\n",
				random.Uint32(), i, i%50, i, []string{"F", "M"}[i%2], 1+i%12, 1+i%28)
			if err != nil {
				return
			}
		}
		w.CloseWithError(errors.Join(b.Flush(), io.EOF))
	}()
	return r
}

func benchRows() int {
	if n, err := strconv.Atoi(os.Getenv("RELAYD_CONTACTS")); err == nil && n > 0 {
		return n
	}
	return 20_000
}

// BenchmarkImport imports RELAYD_CONTACTS rows (20,000) of CSV, durably, and counts a segment of them. It prints rows per
// second, the highest heap in use, the count's seconds and what a bare read of the same CSV needs.
func BenchmarkImport(b *testing.B) {
	n := benchRows()
	for b.Loop() {
		b.StopTimer()
		db, err := kv.OpenBolt(filepath.Join(b.TempDir(), "db"), kv.BoltOptions{})
		require.NoError(b, err)
		s, err := New(b.Context(), Deps{DB: db})
		require.NoError(b, err)
		l := newList(b, s, List{})
		req := &api.CreateImport{List: "customers", Options: api.ContactImportOptions{ColumnMap: map[string]api.ImportColumn{
			"CreateTime": {Field: "attributes.CreateTime", Format: time.DateTime, Timezone: "Asia/Seoul"},
		}}}
		info, _, err := s.CreateImport(b.Context(), "shop", req, false, nil, nil)
		require.NoError(b, err)
		ctx, cancel := context.WithCancel(b.Context())
		peak := watchHeap(ctx)
		b.StartTimer()
		began := time.Now()
		info, err = s.Upload(b.Context(), info, Body{ContentType: "text/csv", Reader: syntheticCSV(n)})
		took := time.Since(began)
		b.StopTimer()
		cancel()
		require.NoError(b, err)
		require.EqualValues(b, n, info.Created)
		b.ReportMetric(float64(n)/took.Seconds(), "rows/s")
		b.ReportMetric(float64(<-peak)/1e6, "peak-MB")

		where, err := ParseCondition([]byte(`{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2023-07-01"}]}`))
		require.NoError(b, err)
		began = time.Now()
		count, err := s.Count(b.Context(), &Audience{List: l.ID, Where: where})
		require.NoError(b, err)
		require.Positive(b, count)
		b.ReportMetric(time.Since(began).Seconds(), "count-s")
		began = time.Now()
		bareRead(b, n)
		b.ReportMetric(took.Seconds()/time.Since(began).Seconds(), "times-bare-read")
		require.NoError(b, db.Close())
		b.StartTimer()
	}
}

func bareRead(b *testing.B, n int) {
	b.Helper()
	r, err := NewReader("text/csv", syntheticCSV(n), ReadOptions{})
	require.NoError(b, err)
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return
		}
	}
}

// watchHeap yields the highest heap in use until ctx ends.
func watchHeap(ctx context.Context) <-chan uint64 {
	peak := make(chan uint64, 1)
	go func() {
		var highest uint64
		var m runtime.MemStats
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-tick.C:
				runtime.ReadMemStats(&m)
				highest = max(highest, m.HeapInuse)
			case <-ctx.Done():
				tick.Stop()
				peak <- highest
				return
			}
		}
	}()
	return peak
}
