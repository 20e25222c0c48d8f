package api

import (
	"time"

	"relayd/internal/mail"
)

// Event is one fact of the event log.
type Event struct {
	ID       string         `json:"id"`
	Type     string         `json:"type"` // message.delivered, message.bounced…
	Version  int            `json:"version"`
	At       time.Time      `json:"at"`
	Account  string         `json:"account,omitempty"`
	Envelope string         `json:"envelope,omitempty"`
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
