package api

import "time"

// SendMessage is the body of POST /v1/messages: one message to at most 50 recipients. Either Raw, or Template with Data,
// or Subject with Text, HTML or both.
type SendMessage struct {
	Stream  string    `json:"stream,omitempty"` // default transactional
	From    Mailbox   `json:"from"`
	To      Mailboxes `json:"to"`
	ReplyTo *Mailbox  `json:"reply_to,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Text    string    `json:"text,omitempty"`
	HTML    string    `json:"html,omitempty"`
	Raw     []byte    `json:"raw,omitempty"` // base64: a whole message (RFC 5322), CRLF or LF line ends

	Template *TemplateRef   `json:"template,omitempty"` // stored, of kind transactional
	Data     map[string]any `json:"data,omitempty"`     // for Template: text, unless a variable is declared as html
}

// MessageQueued is the answer of POST /v1/messages: the message is on stable storage.
type MessageQueued struct {
	ID         string    `json:"id"` // queue ID
	State      string    `json:"state"`
	AcceptedAt time.Time `json:"accepted_at"`
	Recipients int       `json:"recipients"`
}
