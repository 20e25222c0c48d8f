package api

import "time"

// SourceConfig is what a caller says of a source: a table of MySQL, MariaDB or PostgreSQL that feeds a list.
type SourceConfig struct {
	Name   string `json:"name"`    // 1 to 64 of a-z 0-9 - _
	Driver string `json:"driver"`  // "mysql" (MariaDB too) or "postgres"
	DSNRef string `json:"dsn_ref"` // where relayd finds the DSN: "env:NAME" or "file:PATH"; never the DSN itself
	List   string `json:"list"`    // name of the list that it feeds

	Query    SourceQuery    `json:"query"`
	Schedule SourceSchedule `json:"schedule"`

	PageSize         int               `json:"page_size"`          // rows in one query and one transaction, 1 to 10000; default 2000
	SafetyLagSeconds int64             `json:"safety_lag_seconds"` // rows changed later than this before now wait for the next run; default 30
	LookbackSeconds  int64             `json:"lookback_seconds"`   // overlap that is read again, for transactions that commit late; default 600
	SourceTimezone   string            `json:"source_timezone"`    // "+09:00" or "Asia/Seoul": of times that the table stores without a zone
	FullResync       *SourceFullResync `json:"full_resync,omitempty"`
	AllowResubscribe bool              `json:"allow_resubscribe"` // a row that says subscribed may bring back who left
}

// SourceQuery says what to read.
type SourceQuery struct {
	Table   string            `json:"table"`   // TABLE or SCHEMA.TABLE
	Columns map[string]string `json:"columns"` // "email", "status", "locale", "timezone" or "attributes.NAME" → column
	Cursor  SourceCursor      `json:"cursor"`
	Deleted *SourceDeleted    `json:"deleted,omitempty"`
}

// SourceCursor names the columns by which changes are found.
type SourceCursor struct {
	UpdatedAt string `json:"updated_at"` // set whenever the row changes
	Key       string `json:"key"`        // unique and never changed
}

// SourceDeleted says which rows are marked as deleted, and what becomes of their contacts.
type SourceDeleted struct {
	Column string `json:"column"`
	When   string `json:"when"`             // "not_null" (default), "true" or "equals"
	Value  string `json:"value,omitempty"`  // for equals
	Action string `json:"action,omitempty"` // "delete" (default) takes the contact off the list, "unsubscribe" keeps it there
}

// SourceSchedule says how often to sync.
type SourceSchedule struct {
	EverySeconds int64 `json:"every_seconds"` // 0: only when asked
}

// SourceFullResync reads the whole table now and then: the only way to see rows that are gone.
type SourceFullResync struct {
	EverySeconds     int64    `json:"every_seconds"`                // 0: only when asked
	MissingRows      string   `json:"missing_rows,omitempty"`       // "report" (default), "unsubscribe" or "delete"
	MaxDeletePercent *float64 `json:"max_delete_percent,omitempty"` // when more are missing they are only reported; default 5
}

// CreateSource is the body of POST /v1/sources. Numbers that are absent get their defaults.
type CreateSource struct {
	Account          string            `json:"account,omitempty"`
	Name             string            `json:"name"`
	Driver           string            `json:"driver"`
	DSNRef           string            `json:"dsn_ref"`
	List             string            `json:"list"`
	Query            SourceQuery       `json:"query"`
	Schedule         *SourceSchedule   `json:"schedule,omitempty"`
	PageSize         *int              `json:"page_size,omitempty"`
	SafetyLagSeconds *int64            `json:"safety_lag_seconds,omitempty"`
	LookbackSeconds  *int64            `json:"lookback_seconds,omitempty"`
	SourceTimezone   string            `json:"source_timezone,omitempty"`
	FullResync       *SourceFullResync `json:"full_resync,omitempty"`
	AllowResubscribe bool              `json:"allow_resubscribe,omitempty"`
}

// PatchSource is the body of PATCH /v1/sources/{id}: what is absent stays. Objects are replaced as a whole. Another
// driver, DSN, list, table or cursor makes the source start anew; other columns make it read every row again.
type PatchSource struct {
	Name             *string           `json:"name,omitempty"`
	Driver           *string           `json:"driver,omitempty"`
	DSNRef           *string           `json:"dsn_ref,omitempty"`
	List             *string           `json:"list,omitempty"`
	Query            *SourceQuery      `json:"query,omitempty"`
	Schedule         *SourceSchedule   `json:"schedule,omitempty"`
	PageSize         *int              `json:"page_size,omitempty"`
	SafetyLagSeconds *int64            `json:"safety_lag_seconds,omitempty"`
	LookbackSeconds  *int64            `json:"lookback_seconds,omitempty"`
	SourceTimezone   *string           `json:"source_timezone,omitempty"`
	FullResync       *SourceFullResync `json:"full_resync,omitempty"`
	AllowResubscribe *bool             `json:"allow_resubscribe,omitempty"`
}

// Source is one source with its state.
type Source struct {
	ID      string `json:"id"` // "src_…"
	Account string `json:"account"`
	SourceConfig
	State     string           `json:"state"`     // idle, queued, running or failed
	Watermark *SourceWatermark `json:"watermark"` // null before the first row
	Error     string           `json:"error,omitempty"`
	NextRunAt *time.Time       `json:"next_run_at"` // null: only when asked
	LastRun   *SourceRun       `json:"last_run,omitempty"`
	CreatedAt time.Time        `json:"created_at"`
	UpdatedAt time.Time        `json:"updated_at"`
	ETag      string           `json:"etag"`
}

// SourceWatermark is the last row, by (updated_at, key), that a source has read.
type SourceWatermark struct {
	UpdatedAt time.Time `json:"updated_at"`
	Key       string    `json:"id"`
}

// SyncSource is the body of POST /v1/sources/{id}/sync.
type SyncSource struct {
	Full bool `json:"full,omitempty"` // read the whole table
}

// SourceRun is one run of a source. Read is the sum of Created to Rejected; rows of the overlap that were read before
// count as unchanged, and a full run reads the rows changed last once more.
type SourceRun struct {
	ID                  string           `json:"id"` // "run_…"
	Source              string           `json:"source"`
	State               string           `json:"state"`   // queued, running, completed or failed
	Trigger             string           `json:"trigger"` // schedule or api
	Full                bool             `json:"full"`
	From                *SourceWatermark `json:"from"`
	To                  *SourceWatermark `json:"to"`
	Read                int64            `json:"read"`
	Created             int64            `json:"created"`
	Updated             int64            `json:"updated"`
	Unchanged           int64            `json:"unchanged"`
	Unsubscribed        int64            `json:"unsubscribed"`         // by their row
	Deleted             int64            `json:"deleted"`              // taken off the list
	Duplicates          int64            `json:"duplicates"`           // rows of an address that a later row has
	SkippedUnsubscribed int64            `json:"skipped_unsubscribed"` // say subscribed of somebody who left; what else they say is taken
	SkippedErased       int64            `json:"skipped_erased"`       // of people who asked to be forgotten
	Rejected            int64            `json:"rejected"`
	Missing             int64            `json:"missing"` // of a full run: rows that are gone from the table
	Future              int64            `json:"future"`  // rows changed after now by their own account: they wait; at most 1000 are counted
	Errors              []SourceRowError `json:"errors,omitempty"`
	ErrorsTruncated     bool             `json:"errors_truncated,omitempty"`
	Warnings            []string         `json:"warnings,omitempty"`
	Error               string           `json:"error,omitempty"`
	QueuedAt            time.Time        `json:"queued_at"`
	StartedAt           *time.Time       `json:"started_at"`
	FinishedAt          *time.Time       `json:"finished_at"`
	Seconds             float64          `json:"seconds"`
}

// SourceRowError is one row that was not taken over, or (row_missing) that is gone.
type SourceRowError struct {
	Key    string `json:"key"`
	Column string `json:"column,omitempty"`
	Value  string `json:"value,omitempty"` // cleaned, at most 200 bytes
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// SourceTest tells what a source would meet.
type SourceTest struct {
	OK            bool            `json:"ok"`
	Problems      []SourceFinding `json:"problems"` // a run would fail
	Warnings      []SourceFinding `json:"warnings"`
	Server        string          `json:"server,omitempty"`
	UpdatedAtType string          `json:"updated_at_type,omitempty"`
	Precision     string          `json:"precision,omitempty"`  // second, millisecond or microsecond
	IndexUsed     string          `json:"index_used,omitempty"` // on (updated_at, key); "" for none
	EstimatedRows int64           `json:"estimated_rows"`
	DatabaseTime  *time.Time      `json:"database_time,omitempty"`
	Sample        []SourceSample  `json:"sample"`
}

// SourceFinding is one thing that is wrong, or worth knowing.
type SourceFinding struct {
	Code   string `json:"code"`
	Field  string `json:"field,omitempty"` // JSON Pointer into the source
	Detail string `json:"detail"`
}

// SourceSample is a row as it would become a contact.
type SourceSample struct {
	Key        string         `json:"key"`
	UpdatedAt  string         `json:"updated_at"`
	Email      string         `json:"email"`
	Status     string         `json:"status,omitempty"`
	Deleted    bool           `json:"deleted,omitempty"`
	Attributes map[string]any `json:"attributes"`
	Error      string         `json:"error,omitempty"`
}
