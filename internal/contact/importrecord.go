package contact

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// Tables of imports.
const (
	tableImport        kv.Table = "contact_import"         // import → JSON
	tableImportAccount kv.Table = "contact_import_account" // account, inverted import → nothing: newest first
	tableImportKey     kv.Table = "contact_import_key"     // account, SHA-256 of an Idempotency-Key → import
	tableChunk         kv.Table = "contact_import_chunk"   // import, number (4) → JSON: how far it is stored
	tableImportError   kv.Table = "contact_import_error"   // import, chunk (4), number (8) → JSON: a row that was rejected
)

// The states of an import.
const (
	ImportOpen      = "open" // waits for chunks, or for the commit
	ImportRunning   = "running"
	ImportCompleted = "completed"
	ImportFailed    = "failed"
	ImportCancelled = "cancelled"
)

// The reasons of failures.
const (
	reasonTooManyErrors = "import_too_many_errors"
	reasonUpload        = "upload_interrupted"
	reasonCrash         = "relayd_stopped"
	reasonListGone      = "list_deleted"
	reasonInput         = "invalid_upload"
)

// Errors of imports.
var (
	ErrInProgress = errors.New("another import into this list is running")
	ErrDigest     = errors.New("the Content-Digest does not fit what was received")
	ErrChunk      = errors.New("this chunk was received with other content")
)

// Limits of imports.
const (
	MaxChunks     = 10_000
	maxKept       = 10_000   // rejected rows of one import
	maxKeptBytes  = 64 << 20 // of their text
	importBatch   = 2500     // rows in one transaction
	importBytes   = 4 << 20  // of them
	windowRows    = 20_000   // read before they are sorted and stored
	windowBytes   = 7 << 20  // of memory that they take, shared by what runs
	mostRunning   = 16       // chunks and uploads at a time
	importsStored = 90 * 24 * time.Hour
)

// Import is what is stored of one import: what was asked for, and its state. How far it came stands with its chunks.
type Import struct {
	ID       ID               `json:"-"`
	Account  string           `json:"account"`
	List     ListID           `json:"list"`
	ListName string           `json:"list_name"`
	State    string           `json:"state"`
	Reason   string           `json:"reason,omitempty"`
	Detail   string           `json:"detail,omitempty"`
	Chunked  bool             `json:"chunked,omitempty"`
	Request  api.CreateImport `json:"request"`
	Started  time.Time        `json:"started"`
	Finished time.Time        `json:"finished,omitzero"`
	Key      []byte           `json:"key,omitempty"` // SHA-256 of its Idempotency-Key
}

// chunk is how far one chunk, or the whole of a one-shot upload, is stored.
type chunk struct {
	Digest   []byte        `json:"digest,omitempty"` // SHA-256 of the bytes; of a one-shot upload none
	Done     bool          `json:"done,omitempty"`
	Stats    Stats         `json:"stats"`
	Rows     int64         `json:"rows"` // taken from the upload, good and bad
	Ahead    ahead         `json:"ahead,omitzero"`
	Bytes    int64         `json:"bytes"`
	Roles    int64         `json:"roles,omitempty"` // rows that were taken of role addresses
	Kept     int64         `json:"kept,omitempty"`  // rejected rows that are stored
	KeptSize int64         `json:"kept_size,omitempty"`
	Took     time.Duration `json:"took"`
	Encoding string        `json:"encoding,omitempty"`
	Header   []string      `json:"header,omitempty"`
	Delim    byte          `json:"delim,omitempty"`
}

// ahead is how far a window is stored of which some rows are and some are not; the zero value is no such window. It begins
// Stored rows before the end of those that its chunk counts, and is read again from there.
type ahead struct {
	Read    int64  `json:"read"`    // rows of the window, good and bad
	Stored  int64  `json:"stored"`  // of them
	Through string `json:"through"` // the last mailbox that is stored: of the window, all before it are
}

// aheadVersion is that of a chunk with a window half stored: a release that does not know windows must not go on with it.
const aheadVersion = recordVersion + 1

// rejected is one stored row.
type rejected struct {
	api.ImportError
	Raw string `json:"raw,omitempty"`
}

// ImportInfo is an import with its progress.
type ImportInfo struct {
	Import
	Stats
	Rows, Bytes int64
	Roles       int64 // rows that were taken of role addresses
	Kept        int64
	Took        time.Duration
	Chunks      int
	Encoding    string
}

func importID(id ID) string { return id.text(importPrefix) }

// Name is the import's ID in the API.
func (i *Import) Name() string { return importID(i.ID) }

func chunkKey(id ID, n uint32) []byte { return binary.BigEndian.AppendUint32(bytes.Clone(id[:]), n) }

func importErrorKey(id ID, n uint32, row int64) []byte {
	return binary.BigEndian.AppendUint64(chunkKey(id, n), uint64(row)) //nolint:gosec // not negative
}

// accountImportKey sorts new imports before old ones.
func accountImportKey(account string, id ID) []byte {
	b := accountKey(account)
	for _, c := range id {
		b = append(b, ^c)
	}
	return b
}

func putJSON(tx kv.Tx, table kv.Table, key []byte, v any) error {
	return putVersion(tx, table, recordVersion, key, v)
}

func putVersion(tx kv.Tx, table kv.Table, version byte, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", table, err)
	}
	if err := tx.Put(table, key, append([]byte{version}, b...)); err != nil {
		return fmt.Errorf("write %s: %w", table, err)
	}
	return nil
}

func readJSON(table kv.Table, b []byte, v any) error {
	return readVersion(table, recordVersion, b, v)
}

// readVersion takes versions up to the newest.
func readVersion(table kv.Table, newest byte, b []byte, v any) error {
	if len(b) == 0 || b[0] < recordVersion || b[0] > newest {
		return fmt.Errorf("%w: unknown version in %s", errBadRecord, table)
	}
	if err := json.Unmarshal(b[1:], v); err != nil {
		return fmt.Errorf("%w: %s: %w", errBadRecord, table, err)
	}
	return nil
}

func getImport(tx kv.Tx, account, ref string) (*Import, error) {
	id, err := parseID(ref, importPrefix)
	if err != nil {
		return nil, err
	}
	v, err := tx.Get(tableImport, id[:])
	if err != nil {
		return nil, fmt.Errorf("read import: %w", err)
	}
	if v == nil {
		return nil, ErrNotFound
	}
	i := &Import{ID: id}
	if err := readJSON(tableImport, v, i); err != nil {
		return nil, err
	}
	if account != "" && i.Account != account {
		return nil, ErrNotFound
	}
	return i, nil
}

func (i *Import) put(tx kv.Tx) error { return putJSON(tx, tableImport, bytes.Clone(i.ID[:]), i) }

func getChunk(tx kv.Tx, id ID, n uint32) (chunk, error) {
	var c chunk
	v, err := tx.Get(tableChunk, chunkKey(id, n))
	if err != nil || v == nil {
		return c, err
	}
	return c, c.read(v)
}

func (c *chunk) read(b []byte) error { return readVersion(tableChunk, aheadVersion, b, c) }

func (c *chunk) put(tx kv.Tx, id ID, n uint32) error {
	version := byte(recordVersion)
	if c.Ahead != (ahead{}) {
		version = aheadVersion
	}
	return putVersion(tx, tableChunk, version, chunkKey(id, n), c)
}

// progress adds up the chunks.
func progress(tx kv.Tx, i *Import) (*ImportInfo, error) {
	info := &ImportInfo{Import: *i}
	err := tx.Scan(tableChunk, i.ID[:], kv.PrefixEnd(i.ID[:]), func(_, v []byte) (bool, error) {
		var c chunk
		if err := c.read(v); err != nil {
			return false, err
		}
		info.Add(c.Stats)
		info.Rows += c.Rows
		info.Bytes += c.Bytes
		info.Roles += c.Roles
		info.Kept += c.Kept
		info.Took += c.Took
		if info.Encoding == "" {
			info.Encoding = c.Encoding
		}
		if c.Done {
			info.Chunks++
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read chunks of import: %w", err)
	}
	return info, nil
}
