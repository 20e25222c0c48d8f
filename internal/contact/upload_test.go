package contact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// rowsCSV has n rows; rows from changed on have another name.
func rowsCSV(from, n int) string {
	var b strings.Builder
	b.WriteString("email,name\n")
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&b, "u%d@x.example,N%d\n", i, i)
	}
	return b.String()
}

func chunkBody(body string) Body {
	sum := sha256.Sum256([]byte(body))
	return Body{ContentType: "text/csv", Digest: sum[:], Reader: strings.NewReader(body)}
}

func TestChunks(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	info := begin(t, s, api.CreateImport{ExpectedChunks: 3}, true)
	var all sync.WaitGroup
	for n := 1; n <= 3; n++ {
		all.Go(func() {
			c, err := s.UploadChunk(t.Context(), "shop", info.Name(), n, chunkBody(rowsCSV(1000*n, 1000)+"bad\n"))
			require.NoError(t, err)
			require.Equal(t, Chunk{n, 1001, 1, false}, c)
		})
	}
	_, err := s.CommitImport(t.Context(), "shop", info.Name(), 2)
	require.Error(t, err, "three were announced")
	all.Wait()
	c, err := s.UploadChunk(t.Context(), "shop", info.Name(), 2, chunkBody(rowsCSV(2000, 1000)+"bad\n"))
	require.NoError(t, err)
	require.Equal(t, Chunk{2, 1001, 1, true}, c, "the same bytes again change nothing")
	_, err = s.UploadChunk(t.Context(), "shop", info.Name(), 2, chunkBody(rowsCSV(2000, 999)))
	require.ErrorIs(t, err, ErrChunk)
	wrong := chunkBody(rowsCSV(0, 10))
	wrong.Reader = strings.NewReader(rowsCSV(0, 9))
	_, err = s.UploadChunk(t.Context(), "shop", info.Name(), 3, wrong)
	require.ErrorIs(t, err, ErrDigest)
	_, err = s.UploadChunk(t.Context(), "other", info.Name(), 3, chunkBody("email\n"))
	require.ErrorIs(t, err, ErrNotFound)
	for range 2 {
		info, err = s.CommitImport(t.Context(), "shop", info.Name(), 3)
		require.NoError(t, err)
		require.Equal(t, ImportCompleted, info.State)
	}
	require.Equal(t, Stats{Created: 3000, Rejected: 3}, info.Stats)
	require.EqualValues(t, 3000, counts(t, s, l).Contacts)
	_, err = s.UploadChunk(t.Context(), "shop", info.Name(), 1, chunkBody("email\n"))
	require.ErrorIs(t, err, ErrChunk)
	rows := importErrors(t, s, info.Name())
	require.Equal(t, []int{1, 2, 3}, []int{rows[0].Chunk, rows[1].Chunk, rows[2].Chunk})
}

func TestWrongDigestWritesNothing(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	b := chunkBody(rowsCSV(0, 10))
	b.Reader = strings.NewReader(rowsCSV(0, 9))
	info := begin(t, s, api.CreateImport{}, false)
	_, err := s.Upload(t.Context(), info, b)
	require.ErrorIs(t, err, ErrDigest)
	require.Equal(t, Counts{}, counts(t, s, l))
}

func TestMissingChunksAreNamed(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	info := begin(t, s, api.CreateImport{}, true)
	_, err := s.UploadChunk(t.Context(), "shop", info.Name(), 2, chunkBody(rowsCSV(0, 1)))
	require.NoError(t, err)
	_, err = s.CommitImport(t.Context(), "shop", info.Name(), 3)
	require.ErrorIs(t, err, ErrState)
	require.ErrorContains(t, err, "missing: 1, 3")
}

// failing is a store whose power fails after some updates.
type failing struct {
	kv.DB
	left int
}

var errPower = errors.New("power failed")

func (f *failing) Update(ctx context.Context, fn func(kv.Tx) error) error {
	if f.left--; f.left < 0 {
		return errPower
	}
	return f.DB.Update(ctx, fn)
}

func TestChunkGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	info := begin(t, s, api.CreateImport{}, true)
	body := rowsCSV(0, 3*importBatch) + "bad\n"
	whole := s.DB
	s.DB = &failing{whole, 2}
	_, err := s.UploadChunk(t.Context(), "shop", info.Name(), 1, chunkBody(body))
	require.ErrorIs(t, err, errPower)
	s.DB = whole
	require.EqualValues(t, 2*importBatch, counts(t, s, l).Contacts)
	got, err := s.Import(t.Context(), "shop", info.Name())
	require.NoError(t, err)
	require.EqualValues(t, 2*importBatch, got.Rows)
	_, err = s.UploadChunk(t.Context(), "shop", info.Name(), 1, chunkBody(body+"more@x.example,More\n"))
	require.ErrorIs(t, err, ErrChunk, "what is stored was of other bytes")
	c, err := s.UploadChunk(t.Context(), "shop", info.Name(), 1, chunkBody(body))
	require.NoError(t, err)
	require.Equal(t, Chunk{1, 3*importBatch + 1, 1, false}, c)
	got, err = s.CommitImport(t.Context(), "shop", info.Name(), 1)
	require.NoError(t, err)
	require.Equal(t, Stats{Created: 3 * importBatch, Rejected: 1}, got.Stats, "no row was counted twice")
	require.EqualValues(t, len(body), got.Bytes)
}

// Rows are stored in the order of mailboxes; wherever the power fails in a window, the rest of it comes once.
func TestWindowGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("email,name,topic\n")
	for i := range windowRows + importBatch { // more than a window; in no order; a tenth comes twice; some are bad
		switch who := (i * 7919) % (windowRows + importBatch); {
		case i%1000 == 7:
			fmt.Fprintf(&b, "bad%d,N,\n", i)
		case i%1000 == 8:
			fmt.Fprintf(&b, "u%d@x.example,N,perhaps\n", who)
		case i%10 == 0:
			fmt.Fprintf(&b, "twice%d@x.example,N%d,\n", i%500, i)
		default:
			fmt.Fprintf(&b, "u%d@x.example,N,yes\n", who)
		}
	}
	req := api.CreateImport{Options: api.ContactImportOptions{ColumnMap: map[string]api.ImportColumn{"topic": {Field: "topics.promotions"}}}}
	topics := []Topic{{Name: "promotions", Default: "subscribed"}}
	run := func(cut bool) (info *ImportInfo, n Counts, bad []RejectedRow, attempts int) {
		s, _ := newStore(t, nil)
		l := newList(t, s, List{Topics: topics})
		info = begin(t, s, req, true)
		for whole := s.DB; ; {
			if cut {
				s.DB = &failing{whole, 1}
			}
			attempts++
			_, err := s.UploadChunk(t.Context(), "shop", info.Name(), 1, chunkBody(b.String()))
			s.DB = whole
			if err == nil {
				break
			}
			require.ErrorIs(t, err, errPower)
			s, err = New(t.Context(), s.Deps) // another process
			require.NoError(t, err)
			whole = s.DB
		}
		info, err := s.CommitImport(t.Context(), "shop", info.Name(), 1)
		require.NoError(t, err)
		return info, counts(t, s, l), importErrors(t, s, info.Name()), attempts
	}
	want, members, rejected, attempts := run(false)
	require.Equal(t, 1, attempts)
	require.Positive(t, want.Duplicates)
	require.EqualValues(t, 46, want.Rejected)
	got, members2, rejected2, attempts := run(true)
	require.Greater(t, attempts, windowRows/importBatch)
	require.Equal(t, want.Stats, got.Stats)
	require.Equal(t, want.Rows, got.Rows)
	require.Equal(t, members, members2)
	require.Equal(t, rejected, rejected2)
}

func TestReleaseWithoutWindowsDoesNotGoOnWithOne(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	id := ID{1}
	for version, c := range map[byte]chunk{recordVersion: {Rows: 9}, aheadVersion: {Rows: 9, Ahead: ahead{20, 9, "a@x.example"}}} {
		require.NoError(t, s.DB.Update(t.Context(), func(tx kv.Tx) error { return c.put(tx, id, 1) }))
		require.NoError(t, s.DB.View(t.Context(), func(tx kv.Tx) error {
			raw, err := tx.Get(tableChunk, chunkKey(id, 1))
			require.NoError(t, err)
			require.Equal(t, version, raw[0])
			got, err := getChunk(tx, id, 1)
			require.Equal(t, c, got)
			return err
		}))
	}
}

func TestUploadsShareTheirMemory(t *testing.T) {
	t.Parallel()
	var a activeImports
	require.Equal(t, 12, a.share(12))
	for n := range uint32(4) {
		end, err := a.begin(ListID{1}, ID{2}, n)
		require.NoError(t, err)
		defer end()
	}
	require.Equal(t, 3, a.share(12))
}

func TestWideRowsMakeSmallWindows(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("email")
	for i := range 150 {
		fmt.Fprintf(&b, ",a%d", i)
	}
	row := strings.Repeat(",value", 150)
	for i := range 2000 {
		fmt.Fprintf(&b, "\nu%d@x.example%s", i, row)
	}
	r, err := NewReader("text/csv", strings.NewReader(b.String()), ReadOptions{})
	require.NoError(t, err)
	var w window
	w.fill(r, windowRows, windowBytes)
	require.Less(t, w.read, int64(windowBytes/(150*40)))
	require.Positive(t, w.read)
	first := w.read
	w.fill(r, windowRows, windowBytes)
	require.Equal(t, fmt.Sprintf("u%d@x.example", first), w.rows[0].To.String(), "goes on where the first ended")
	require.Len(t, w.rows[0].Attributes, 150)
	require.Equal(t, Attribute{"a0", String, "value"}, w.rows[0].Attributes[0])
}

func TestBrokenUploadMayBeRepeated(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	l := newList(t, s, List{})
	body := rowsCSV(0, 2*importBatch)
	req := api.CreateImport{List: "customers"}
	key := IdempotencyDigest("key_1", "crm-2026")
	info, _, err := s.CreateImport(t.Context(), "shop", &req, false, key, nil)
	require.NoError(t, err)
	lost := errors.New("connection lost")
	_, err = s.Upload(t.Context(), info, Body{ContentType: "text/csv", Reader: io.MultiReader(strings.NewReader(body[:len(body)-100]), iotest.ErrReader(lost))})
	require.ErrorIs(t, err, lost)
	info, err = s.Import(t.Context(), "shop", info.Name())
	require.NoError(t, err)
	require.Equal(t, []string{ImportFailed, "upload_interrupted"}, []string{info.State, info.Reason})

	info, fresh, err := s.CreateImport(t.Context(), "shop", &req, false, key, nil)
	require.NoError(t, err)
	require.True(t, fresh, "a failure frees the key")
	info, err = s.Upload(t.Context(), info, Body{ContentType: "text/csv", Reader: strings.NewReader(body)})
	require.NoError(t, err)
	require.EqualValues(t, 2*importBatch, info.Created+info.Unchanged)
	require.EqualValues(t, 2*importBatch, counts(t, s, l).Contacts)
	again, fresh, err := s.CreateImport(t.Context(), "shop", &req, false, key, nil)
	require.NoError(t, err)
	require.False(t, fresh)
	require.Equal(t, info.ID, again.ID)
	require.Equal(t, info.Stats, again.Stats)
}

func TestUploadsThatACrashCutOffHaveFailed(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	one, chunked := begin(t, s, api.CreateImport{}, false), begin(t, s, api.CreateImport{}, true)
	s, err := New(t.Context(), s.Deps)
	require.NoError(t, err)
	one, err = s.Import(t.Context(), "shop", one.Name())
	require.NoError(t, err)
	require.Equal(t, []string{ImportFailed, "relayd_stopped"}, []string{one.State, one.Reason})
	chunked, err = s.Import(t.Context(), "shop", chunked.Name())
	require.NoError(t, err)
	require.Equal(t, ImportOpen, chunked.State)
	page, next, err := s.Imports(t.Context(), "shop", "", 1)
	require.NoError(t, err)
	require.Len(t, page, 1)
	page2, next, err := s.Imports(t.Context(), "shop", next, 5)
	require.NoError(t, err)
	require.Empty(t, next)
	require.ElementsMatch(t, []ID{one.ID, chunked.ID}, []ID{page[0].ID, page2[0].ID})
}

func TestSecondUploadIntoOneListWaits(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t, nil)
	newList(t, s, List{})
	newList(t, s, List{Name: "other"})
	first, second := begin(t, s, api.CreateImport{}, false), begin(t, s, api.CreateImport{}, false)
	elsewhere := begin(t, s, api.CreateImport{List: "other"}, false)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Upload(t.Context(), first, Body{ContentType: "text/csv", Reader: r})
		done <- err
	}()
	_, err := io.WriteString(w, "email\na@x.example\n") // it runs
	require.NoError(t, err)
	_, err = s.Upload(t.Context(), second, Body{ContentType: "text/csv", Reader: strings.NewReader("email\n")})
	require.ErrorIs(t, err, ErrInProgress)
	_, err = s.Upload(t.Context(), elsewhere, Body{ContentType: "text/csv", Reader: strings.NewReader("email\nb@x.example\n")})
	require.NoError(t, err, "into another list")
	info, removed, err := s.DeleteImport(t.Context(), "shop", first.Name())
	require.NoError(t, err)
	require.False(t, removed)
	require.Equal(t, ImportCancelled, info.State)
	require.NoError(t, w.Close())
	require.ErrorIs(t, <-done, ErrState, "it was cancelled")
	_, removed, err = s.DeleteImport(t.Context(), "shop", first.Name())
	require.NoError(t, err)
	require.True(t, removed)
	_, err = s.Import(t.Context(), "shop", first.Name())
	require.ErrorIs(t, err, ErrNotFound)
}
