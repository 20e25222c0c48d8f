// Package api holds the request and response types of relayd's HTTP API and the client that relayctl and tests use.
// JSON is snake_case, times are RFC 3339 in UTC, lists are pages, errors are problems (RFC 9457). The package does not
// know how the server works: admin maps its own types to these.
package api

// Page is one page of a list. NextCursor is opaque, bound to the filter that it was made with, and empty at the end. A
// page may be short, even empty, and yet have more: go on with its cursor.
type Page[T any] struct {
	Data       []T    `json:"data"`
	HasMore    bool   `json:"has_more"`
	NextCursor string `json:"next_cursor,omitempty"`
}

// Limits of the limit parameter of lists.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// Version is the answer of GET /v1/version.
type Version struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	GoVersion string `json:"go_version"`
	Hostname  string `json:"hostname"`
}
