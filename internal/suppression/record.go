package suppression

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// errBadRecord is wrapped by every error of decode.
var errBadRecord = errors.New("bad suppression record")

const recordVersion = 1

// encode writes version, created and expires (Unix nanoseconds, 0 for never), then address, reason, source and note,
// each with its length before it. Account and scope stand in the key.
func encode(e Entry) []byte {
	b := make([]byte, 0, 64+len(e.Address)+len(e.Source)+len(e.Note))
	b = append(b, recordVersion)
	b = binary.AppendVarint(b, unixNano(e.CreatedAt))
	b = binary.AppendVarint(b, unixNano(e.ExpiresAt))
	for _, s := range []string{e.Address, e.Reason, e.Source, e.Note} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

func decode(b []byte) (Entry, error) {
	var e Entry
	if len(b) == 0 || b[0] != recordVersion {
		return e, fmt.Errorf("%w: unknown version", errBadRecord)
	}
	b = b[1:]
	for _, t := range []*time.Time{&e.CreatedAt, &e.ExpiresAt} {
		v, n := binary.Varint(b)
		if n <= 0 {
			return Entry{}, fmt.Errorf("%w: time", errBadRecord)
		}
		if v != 0 {
			*t = time.Unix(0, v).UTC()
		}
		b = b[n:]
	}
	for _, s := range []*string{&e.Address, &e.Reason, &e.Source, &e.Note} {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > uint64(len(b)-n) {
			return Entry{}, fmt.Errorf("%w: text", errBadRecord)
		}
		*s = string(b[n : n+int(v)]) //nolint:gosec // at most len(b)
		b = b[n+int(v):]             //nolint:gosec // at most len(b)
	}
	if len(b) != 0 {
		return Entry{}, fmt.Errorf("%w: %d bytes too many", errBadRecord, len(b))
	}
	return e, nil
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
