package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// readAll reads the whole table in the order of keys: rows without a time, rows of the future, and what no overlap was
// long enough for. What is remembered and not met is missing.
func (r *run) readAll(ctx context.Context) error {
	var after *string
	for {
		text, args, width := r.plan.all(after)
		rows, more, err := r.fetch(ctx, text, args, width)
		if err != nil {
			return fmt.Errorf("read table: %w", err)
		}
		if len(rows) == 0 {
			break
		}
		last := rows[len(rows)-1].key
		if after != nil && *after == last {
			return fmt.Errorf("the order of keys does not advance behind %q", mail.CleanText(last, 100))
		}
		after = &last
		for i := range rows {
			r.seen = append(r.seen, hashKey(rows[i].key))
		}
		if err := r.commit(ctx, &batch{rows: rows, force: true}); err != nil {
			return err
		}
		if err := r.readAgain(ctx); err != nil {
			return err
		}
		if !more {
			break
		}
	}
	slices.Sort(r.seen)
	err := r.missing(ctx)
	r.seen = nil
	return err
}

func hashKey(key string) uint64 {
	h := sha256.Sum256([]byte(key))
	return binary.BigEndian.Uint64(h[:])
}

// missing tells which rows are gone, and does with their contacts what the source says, unless they are too many.
func (r *run) missing(ctx context.Context) error {
	var total, gone int64
	var some []string
	if err := r.eachMissing(ctx, func(all int64, keys []string) error {
		total += all
		gone += int64(len(keys))
		some = append(some, keys[:min(len(keys), maxRowErrors-len(some))]...)
		return nil
	}); err != nil {
		return err
	}
	r.report.Missing = gone
	if gone == 0 {
		return nil
	}
	rule := r.rec.Config.FullResync
	what, most := "report", defaultMissing
	if rule != nil {
		what = rule.MissingRows
		if rule.MaxDeletePercent != nil {
			most = *rule.MaxDeletePercent
		}
	}
	if float64(gone)*100 > most*float64(total) && what != "report" {
		r.warn(fmt.Sprintf("%d of %d rows are missing, more than max_delete_percent %s: they are only reported",
			gone, total, strings.TrimSuffix(fmt.Sprintf("%.2f", most), ".00")))
		what = "report"
	}
	if what == "report" {
		var b batchErrors
		for _, key := range some {
			b.add(key)
		}
		addCounts(&r.report, &api.SourceRun{Errors: b})
		if int(gone) > len(some) {
			r.report.ErrorsTruncated = true
		}
		return nil
	}
	return r.eachMissing(ctx, func(_ int64, keys []string) error {
		for part := range slices.Chunk(keys, missSlice) {
			if err := r.commit(ctx, &batch{gone: part, unsubscribe: what == "unsubscribe"}); err != nil {
				return err
			}
		}
		return r.readAgain(ctx)
	})
}

// batchErrors are row errors under construction.
type batchErrors []api.SourceRowError

func (b *batchErrors) add(key string) {
	*b = append(*b, api.SourceRowError{
		Key: mail.CleanText(key, maxErrorValue), Code: "row_missing", Detail: "the row is gone from the table; its contact stays",
	})
}

// eachMissing walks what is remembered, in slices: how many there are, and the keys that the full pass has not met.
func (r *run) eachMissing(ctx context.Context, fn func(all int64, gone []string) error) error {
	from, end := []byte(r.space), kv.PrefixEnd(r.space)
	for more := true; more; {
		var all int64
		var gone []string
		var last []byte
		err := r.s.deps.DB.View(ctx, func(tx kv.Tx) error {
			all, gone = 0, nil
			return tx.Scan(tableRow, from, end, func(k, _ []byte) (bool, error) {
				all++
				key := string(k[len(r.space):])
				if _, met := slices.BinarySearch(r.seen, hashKey(key)); !met {
					gone = append(gone, key)
				}
				last = append(last[:0], k...)
				return all < scanSlice, nil
			})
		})
		if err != nil {
			return fmt.Errorf("look for missing rows: %w", err)
		}
		more = all == scanSlice
		from = append(bytes.Clone(last), 0)
		if err := fn(all, gone); err != nil {
			return err
		}
	}
	return nil
}
