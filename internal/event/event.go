// Package event is the durable log of what happened: it feeds the API, webhooks and statistics.
package event

import (
	"time"

	"relayd/internal/mail"
)

// Event is one fact. Fields that do not apply are empty.
type Event struct {
	ID       string         `json:"id"`   // "evt_…", set by Append, sorts by time
	Type     string         `json:"type"` // noun.verb: message.accepted, message.delivered, message.bounced, contact.unsubscribed…
	Version  int            `json:"version"`
	At       time.Time      `json:"at"`
	Account  string         `json:"account,omitempty"`
	Envelope string         `json:"envelope,omitempty"` // queueID or queueID.n
	Stream   string         `json:"stream,omitempty"`
	Campaign string         `json:"campaign,omitempty"`
	From     string         `json:"from,omitempty"`
	To       string         `json:"to,omitempty"`
	Attempt  int            `json:"attempt,omitempty"`
	Reply    *mail.Reply    `json:"reply,omitempty"`
	Host     string         `json:"host,omitempty"`
	TLS      string         `json:"tls,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Data     map[string]any `json:"data,omitempty"`
}
