package api

import "time"

// Credential lets a client submit over SMTP.
type Credential struct {
	Username  string    `json:"username"`
	Account   string    `json:"account"`
	Domains   []string  `json:"domains"` // sender domains it may use; empty: all of the account
	CreatedAt time.Time `json:"created_at"`
	Password  string    `json:"password,omitempty"` // only in the answer that creates it
}

// CreateCredential is the body of POST /v1/credentials.
type CreateCredential struct {
	Account string   `json:"account,omitempty"`
	Domains []string `json:"domains,omitempty"`
}

// Key lets a program use this API.
type Key struct {
	ID        string    `json:"id"`
	Account   string    `json:"account"`
	Name      string    `json:"name,omitempty"`
	Scopes    []string  `json:"scopes"`
	CreatedAt time.Time `json:"created_at"`
	Key       string    `json:"key,omitempty"` // the token, only in the answer that creates it
}

// CreateKey is the body of POST /v1/keys.
type CreateKey struct {
	Account string   `json:"account,omitempty"`
	Name    string   `json:"name,omitempty"`
	Scopes  []string `json:"scopes"`
}
