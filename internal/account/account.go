// Package account knows who may use relayd: accounts (tenants) and their domains, SMTP credentials and API keys.
package account

import "time"

// Domain is a sender domain that relayd may sign for.
type Domain struct {
	Name       string    `json:"name"` // A-label, lower case
	Account    string    `json:"account"`
	Sign       string    `json:"sign"` // "required" or "none"
	Selectors  []string  `json:"selectors,omitempty"`
	ReturnPath string    `json:"return_path,omitempty"`
	Configured bool      `json:"configured"` // from the configuration file: not editable over the API
	CreatedAt  time.Time `json:"created_at,omitzero"`
}

// Credential lets a client submit over SMTP. Only a hash of the password is stored.
type Credential struct {
	Username  string    `json:"username"`
	Account   string    `json:"account"`
	Domains   []string  `json:"domains"` // sender domains it may use; empty: all of the account
	CreatedAt time.Time `json:"created_at"`
}

// Key lets a program use the HTTP API. Only SHA-256 of the secret is stored.
type Key struct {
	ID        string    `json:"id"` // "key_…"
	Account   string    `json:"account"`
	Name      string    `json:"name,omitempty"`
	Scopes    []string  `json:"scopes"` // of api.md 3.1, or "all"
	CreatedAt time.Time `json:"created_at"`
}
