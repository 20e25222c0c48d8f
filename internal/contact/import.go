package contact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"relayd/internal/api"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// CreateImport checks what is asked for and stores a new import: one that waits for chunks, or, with chunked false, one
// for Upload. key is SHA-256 of the caller's Idempotency-Key, nil for none: an import of that key that has not failed is
// returned in place of a new one, with fresh false. also runs in the same transaction, nil for nothing.
func (s *Store) CreateImport(ctx context.Context, account string, req *api.CreateImport, chunked bool, key []byte, also func(kv.Tx, *Import) error) (info *ImportInfo, fresh bool, err error) {
	if err := checkImport(req); err != nil {
		return nil, false, err
	}
	i := Import{ID: ID(mail.NewQueueID(s.now())), Account: account, State: ImportOpen, Chunked: chunked, Request: *req, Started: s.now(), Key: key}
	if !chunked {
		i.State = ImportRunning
	}
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		info, fresh = nil, true
		l, err := s.ListTx(tx, account, req.List)
		if err != nil {
			return err
		}
		if key != nil {
			old, err := s.importOfKey(tx, account, key)
			if err != nil {
				return err
			}
			if old != nil && old.State != ImportFailed && old.State != ImportCancelled {
				info, err = progress(tx, old)
				fresh = false
				return err
			}
			if err := tx.Put(tableImportKey, append(accountKey(account), key...), bytes.Clone(i.ID[:])); err != nil {
				return err
			}
		}
		i.List, i.ListName = l.ID, l.Name
		if err := i.put(tx); err != nil {
			return err
		}
		info = &ImportInfo{Import: i}
		if err := tx.Put(tableImportAccount, accountImportKey(account, i.ID), []byte{recordVersion}); err != nil || also == nil {
			return err
		}
		return also(tx, &i)
	})
	if err != nil {
		return nil, false, fmt.Errorf("create import: %w", err)
	}
	return info, fresh, nil
}

func (s *Store) importOfKey(tx kv.Tx, account string, key []byte) (*Import, error) {
	v, err := tx.Get(tableImportKey, append(accountKey(account), key...))
	if err != nil || len(v) != len(ID{}) {
		return nil, err
	}
	i, err := getImport(tx, account, importID(ID(v)))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return i, err
}

func checkImport(req *api.CreateImport) error {
	switch req.Format {
	case "":
		req.Format = "csv"
	case "csv", "jsonl":
	default:
		return invalid("/format", `format is "csv" or "jsonl"`)
	}
	switch req.OnConflict {
	case "", "upsert", "replace", "skip":
	default:
		return invalid("/on_conflict", `on_conflict is "upsert", "replace" or "skip"`)
	}
	switch req.Options.DefaultStatus {
	case "", "subscribed", "unsubscribed", "error":
	default:
		return invalid("/options/default_status", `default_status is "subscribed", "unsubscribed" or "error"`)
	}
	switch req.Options.Delimiter {
	case "", "auto", ",", ";", "\t", "tab", `\t`:
	default:
		return invalid("/options/delimiter", `delimiter is "auto", ",", ";" or a TAB`)
	}
	if req.MaxErrors < 0 {
		return invalid("/max_errors", "max_errors is a number of rows, 0 for no end")
	}
	if req.ExpectedChunks < 0 || req.ExpectedChunks > MaxChunks {
		return invalid("/expected_chunks", "an import has at most %d chunks", MaxChunks)
	}
	if len(req.Options.ColumnMap) > maxColumns {
		return invalid("/options/column_map", "more than %d columns", maxColumns)
	}
	columns := columnsOf(req.Options.ColumnMap)
	for _, h := range sortedKeys(columns) {
		if _, err := mapped(h, columns); err != nil {
			return err
		}
	}
	return nil
}

func columnsOf(m map[string]api.ImportColumn) map[string]Column {
	columns := make(map[string]Column, len(m))
	for h, c := range m {
		columns[h] = Column(c)
	}
	return columns
}

// applyOptions is what the import asks of ApplyTx.
func (i *Import) applyOptions() ApplyOptions {
	o := ApplyOptions{
		Source: "import:" + i.Name(), AllowResubscribe: i.Request.Options.AllowResubscribe,
		ReplaceAttributes: i.Request.OnConflict == "replace", SkipExisting: i.Request.OnConflict == "skip",
	}
	switch i.Request.Options.DefaultStatus {
	case "unsubscribed":
		o.Default = Unsubscribed
	case "error":
		o.Default = Invalid
	}
	return o
}

// Import returns one with its progress; account "" is any.
func (s *Store) Import(ctx context.Context, account, ref string) (info *ImportInfo, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		i, err := getImport(tx, account, ref)
		if err != nil {
			return err
		}
		info, err = progress(tx, i)
		return err
	})
	return info, err
}

// Imports returns up to limit imports of an account, newest first, and the cursor of the next page.
func (s *Store) Imports(ctx context.Context, account, cursor string, limit int) (page []*ImportInfo, next string, err error) {
	prefix := accountKey(account)
	from := prefix
	if cursor != "" {
		id, err := parseID(cursor, importPrefix)
		if err != nil {
			return nil, "", ErrBadCursor
		}
		from = append(accountImportKey(account, id), 0)
	}
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		var ids []ID
		err := tx.Scan(tableImportAccount, from, kv.PrefixEnd(prefix), func(k, _ []byte) (bool, error) {
			if len(ids) == limit {
				next = importID(ids[limit-1])
				return false, nil
			}
			var id ID
			for n, c := range k[len(prefix):] {
				id[n] = ^c
			}
			ids = append(ids, id)
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, id := range ids {
			i, err := getImport(tx, account, importID(id))
			if err != nil {
				return err
			}
			info, err := progress(tx, i)
			if err != nil {
				return err
			}
			page = append(page, info)
		}
		return nil
	})
	return page, next, err
}

// RejectedRow is one row that an import did not take.
type RejectedRow struct {
	Chunk int
	api.ImportError
	Raw string // the row as it stood in the upload
}

// ImportErrors returns up to limit rejected rows in their order, and the cursor of the next page. header is that of a
// CSV's first chunk, with its delimiter.
func (s *Store) ImportErrors(ctx context.Context, account, ref, cursor string, limit int) (page []RejectedRow, next string, header []string, delim byte, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		i, err := getImport(tx, account, ref)
		if err != nil {
			return err
		}
		if err := tx.Scan(tableChunk, i.ID[:], kv.PrefixEnd(i.ID[:]), func(_, v []byte) (bool, error) {
			var c chunk
			err := c.read(v)
			header, delim = c.Header, c.Delim
			return c.Header == nil, err
		}); err != nil {
			return err
		}
		from := i.ID[:]
		if cursor != "" {
			if len(cursor) != 12 {
				return ErrBadCursor
			}
			from = append(append(bytes.Clone(i.ID[:]), cursor...), 0)
		}
		last := ""
		return tx.Scan(tableImportError, from, kv.PrefixEnd(i.ID[:]), func(k, v []byte) (bool, error) {
			if len(page) == limit {
				next = last
				return false, nil
			}
			var r rejected
			if err := readJSON(tableImportError, v, &r); err != nil {
				return false, err
			}
			rest := k[len(i.ID):]
			page, last = append(page, RejectedRow{int(binary.BigEndian.Uint32(rest)), r.ImportError, r.Raw}), string(rest)
			return true, nil
		})
	})
	return page, next, header, delim, err
}

// CommitImport ends an import in chunks: all of chunks 1 to n must be stored. It may be repeated.
func (s *Store) CommitImport(ctx context.Context, account, ref string, n int) (info *ImportInfo, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		i, err := getImport(tx, account, ref)
		if err != nil {
			return err
		}
		if info, err = progress(tx, i); err != nil {
			return err
		}
		if i.State == ImportCompleted && info.Chunks == n {
			return nil
		}
		if i.State != ImportOpen {
			return fmt.Errorf("%w: the import is %s", ErrState, i.State)
		}
		if want := i.Request.ExpectedChunks; want > 0 && n != want {
			return invalid("/chunks", "%d chunks were announced", want)
		}
		if missing := missingChunks(tx, i.ID, n); missing != "" {
			return fmt.Errorf("%w: of %d chunks these are missing: %s", ErrState, n, missing)
		}
		if info.Chunks != n {
			return invalid("/chunks", "%d chunks were received", info.Chunks)
		}
		i.State, i.Finished = ImportCompleted, s.now()
		info.State, info.Finished = i.State, i.Finished
		if err := i.put(tx); err != nil {
			return err
		}
		return s.tell(tx, info)
	})
	if err != nil {
		return nil, fmt.Errorf("commit import: %w", err)
	}
	return info, nil
}

// missingChunks names up to ten.
func missingChunks(tx kv.Tx, id ID, n int) string {
	var missing []string
	for k := 1; k <= n && len(missing) < 10; k++ {
		if c, err := getChunk(tx, id, uint32(k)); err != nil || !c.Done { //nolint:gosec // at most MaxChunks
			missing = append(missing, fmt.Sprint(k))
		}
	}
	return strings.Join(missing, ", ")
}

// tell appends the event of an import that has ended.
func (s *Store) tell(tx kv.Tx, info *ImportInfo) error {
	if s.Events == nil {
		return nil
	}
	return s.Events.Append(tx, event.Event{
		Type: "import." + info.State, At: s.now(), Account: info.Account, Reason: info.Reason,
		Data: map[string]any{
			"import": info.Name(), "list": info.ListName, "rows_read": info.Rows, "created": info.Created, "updated": info.Updated,
			"rejected": info.Rejected, "dry_run": info.Request.DryRun,
		},
	})
}

// DeleteImport cancels an import that has not ended: rows that it has stored stay. One that has ended is forgotten, with
// its rejected rows; removed tells that.
func (s *Store) DeleteImport(ctx context.Context, account, ref string) (info *ImportInfo, removed bool, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		i, err := getImport(tx, account, ref)
		if err != nil {
			return err
		}
		if info, err = progress(tx, i); err != nil {
			return err
		}
		if removed = i.State != ImportOpen && i.State != ImportRunning; removed {
			return forget(tx, i)
		}
		i.State, i.Finished = ImportCancelled, s.now()
		info.State, info.Finished = i.State, i.Finished
		if err := i.put(tx); err != nil {
			return err
		}
		return s.tell(tx, info)
	})
	if err != nil {
		return nil, false, fmt.Errorf("delete import: %w", err)
	}
	return info, removed, nil
}

// forget removes all of an import: at most MaxChunks and maxKept rows.
func forget(tx kv.Tx, i *Import) error {
	for _, table := range []kv.Table{tableChunk, tableImportError} {
		var keys [][]byte
		err := tx.Scan(table, i.ID[:], kv.PrefixEnd(i.ID[:]), func(k, _ []byte) (bool, error) {
			keys = append(keys, bytes.Clone(k))
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := tx.Delete(table, k); err != nil {
				return err
			}
		}
	}
	if i.Key != nil {
		key := append(accountKey(i.Account), i.Key...)
		if v, err := tx.Get(tableImportKey, key); err != nil {
			return err
		} else if bytes.Equal(v, i.ID[:]) {
			if err := tx.Delete(tableImportKey, key); err != nil {
				return err
			}
		}
	}
	if err := tx.Delete(tableImportAccount, accountImportKey(i.Account, i.ID)); err != nil {
		return err
	}
	return tx.Delete(tableImport, bytes.Clone(i.ID[:]))
}

// activeImports are the uploads that run in this process.
type activeImports struct {
	mu    sync.Mutex
	lists map[ListID]ID   // of one-shot uploads
	parts map[string]bool // chunks
	n     int
}

// begin takes a place for an upload; n is 0 for a one-shot one.
func (a *activeImports) begin(list ListID, id ID, n uint32) (end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lists == nil {
		a.lists, a.parts = map[ListID]ID{}, map[string]bool{}
	}
	part := string(chunkKey(id, n))
	if _, busy := a.lists[list]; busy && n == 0 || a.parts[part] {
		return nil, ErrInProgress
	}
	if a.n >= mostRunning {
		return nil, fmt.Errorf("%w: %d imports run already", ErrInProgress, a.n)
	}
	a.n++
	a.parts[part] = true
	if n == 0 {
		a.lists[list] = id
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.n--
		delete(a.parts, part)
		if n == 0 {
			delete(a.lists, list)
		}
	}, nil
}

// share is one upload's part of n.
func (a *activeImports) share(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return n / max(a.n, 1)
}

// recoverImports ends the one-shot uploads that a crash cut off: their connection is gone.
func (s *Store) recoverImports(ctx context.Context) error {
	return s.DB.Update(ctx, func(tx kv.Tx) error {
		var cut []*Import
		err := tx.Scan(tableImport, nil, nil, func(k, v []byte) (bool, error) {
			i := &Import{ID: ID(k)}
			if err := readJSON(tableImport, v, i); err != nil {
				return false, err
			}
			if i.State == ImportRunning && !i.Chunked {
				cut = append(cut, i)
			}
			return true, nil
		})
		if err != nil {
			return fmt.Errorf("read imports: %w", err)
		}
		for _, i := range cut {
			i.State, i.Reason, i.Finished = ImportFailed, reasonCrash, s.now()
			info, err := progress(tx, i)
			if err == nil {
				err = i.put(tx)
			}
			if err == nil {
				err = s.tell(tx, info)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Purge forgets imports that began long ago, and finishes the deletion of lists that a crash cut off.
func (s *Store) Purge(ctx context.Context) error {
	if err := s.finishDeletions(ctx); err != nil {
		return err
	}
	const slice = 20
	end := mail.NewQueueID(s.now().Add(-importsStored)) // IDs sort by time
	for n := slice; n == slice; {
		err := s.DB.Update(ctx, func(tx kv.Tx) error {
			var old []*Import
			err := tx.Scan(tableImport, nil, end[:], func(k, v []byte) (bool, error) {
				i := &Import{ID: ID(k)}
				err := readJSON(tableImport, v, i)
				old = append(old, i)
				return len(old) < slice, err
			})
			if err != nil {
				return err
			}
			for _, i := range old {
				if err := forget(tx, i); err != nil {
					return err
				}
			}
			n = len(old)
			return nil
		})
		if err != nil {
			return fmt.Errorf("purge imports: %w", err)
		}
	}
	return nil
}

// IdempotencyDigest is what CreateImport keeps of an Idempotency-Key.
func IdempotencyDigest(caller, key string) []byte {
	sum := sha256.Sum256([]byte(caller + "\n" + key))
	return sum[:]
}
