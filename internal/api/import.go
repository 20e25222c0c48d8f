package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"
)

// ImportColumn says what a column of an upload holds. In JSON it is an object, or its field alone as a string.
type ImportColumn struct {
	Field    string `json:"field"`              // "email", "status", "attributes.NAME", "topics.NAME", "locale", "timezone", "consent.at", "consent.ip", "consent.source" or "consent.text"; "" drops the column
	Format   string `json:"format,omitempty"`   // of a time: a layout of Go such as "2006-01-02 15:04:05", "rfc3339", "unix" or "unix_ms"
	Timezone string `json:"timezone,omitempty"` // of a format without a zone: "Asia/Seoul" or "+09:00"
}

// errImportColumn is what is said about a column that is neither.
var errImportColumn = errors.New(`a column of column_map is "email" or {"field":"attributes.CreateTime","format":"2006-01-02","timezone":"Asia/Seoul"}`)

// UnmarshalJSON reads both forms.
func (c *ImportColumn) UnmarshalJSON(b []byte) error {
	*c = ImportColumn{}
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &c.Field)
	}
	type plain ImportColumn
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode((*plain)(c)) != nil {
		return errImportColumn
	}
	return nil
}

// ContactImportOptions steer an import of contacts: X-Import-Options of a one-shot upload, or options of CreateImport. The
// zero value recognises everything by itself.
type ContactImportOptions struct {
	ColumnMap        map[string]ImportColumn `json:"column_map,omitempty"`     // by header
	Delimiter        string                  `json:"delimiter,omitempty"`      // "auto" (default), ",", ";" or a TAB
	DefaultStatus    string                  `json:"default_status,omitempty"` // of new contacts without a status: "subscribed" (default), "unsubscribed", or "error"
	AllowResubscribe bool                    `json:"allow_resubscribe,omitempty"`
}

// CreateImport is the JSON body of POST /v1/imports: it begins an import that comes in chunks.
type CreateImport struct {
	Account        string               `json:"account,omitempty"`
	List           string               `json:"list"`
	Format         string               `json:"format,omitempty"`      // "csv" (default; each chunk has the header row) or "jsonl"
	OnConflict     string               `json:"on_conflict,omitempty"` // "upsert" (default): attributes are laid over; "replace": they are replaced; "skip": contacts of the list stay as they are
	MaxErrors      int64                `json:"max_errors,omitempty"`  // more rejected rows end the import; 0: none do
	ExpectedChunks int                  `json:"expected_chunks,omitempty"`
	DryRun         bool                 `json:"dry_run,omitempty"`
	Options        ContactImportOptions `json:"options,omitzero"`
}

// CommitImport is the body of POST /v1/imports/{id}/commit.
type CommitImport struct {
	Chunks int `json:"chunks"`
}

// Import is what became of an import so far.
type Import struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	List    string `json:"list"`
	State   string `json:"state"`            // "open" (waits for chunks), "running", "completed", "failed" or "cancelled"
	Reason  string `json:"reason,omitempty"` // of a failure
	Format  string `json:"format,omitempty"`
	DryRun  bool   `json:"dry_run,omitempty"` // no contact was written
	RowCounts
	RoleAddresses   int64     `json:"role_addresses"` // a warning: rows that were taken of info@, admin@ and the like
	BytesRead       int64     `json:"bytes_read"`     // of the unpacked upload
	RowsPerSecond   int64     `json:"rows_per_second"`
	Encoding        string    `json:"encoding,omitempty"` // that was declared or recognised
	ChunksReceived  int       `json:"chunks_received,omitempty"`
	ExpectedChunks  int       `json:"expected_chunks,omitempty"`
	ErrorsTruncated bool      `json:"errors_truncated,omitempty"` // not every rejected row is kept
	StartedAt       time.Time `json:"started_at"`
	FinishedAt      time.Time `json:"finished_at,omitzero"`
	ErrorsURL       string    `json:"errors_url"`
}

// ImportChunk is the answer of PUT /v1/imports/{id}/chunks/{n}.
type ImportChunk struct {
	Chunk    int   `json:"chunk"`
	Rows     int64 `json:"rows"`
	Accepted int64 `json:"accepted"`
	Rejected int64 `json:"rejected"`
}

// ContactImportError is one row that was not imported.
type ContactImportError struct {
	Chunk int `json:"chunk,omitempty"`
	ImportError
}
