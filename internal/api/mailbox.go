package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// Mailbox is an address with a display name. In JSON it is an object, or a plain string: "a@example.com".
type Mailbox struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

// errMailbox is what is said about a mailbox that is neither.
var errMailbox = errors.New(`a mailbox is "a@example.com" or {"email":"a@example.com","name":"A"}`)

// UnmarshalJSON reads both forms. Fields that it does not know are an error.
func (m *Mailbox) UnmarshalJSON(b []byte) error {
	*m = Mailbox{}
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &m.Email)
	}
	type plain Mailbox
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode((*plain)(m)); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return err
		}
		return errMailbox
	}
	return nil
}

// Mailboxes is a list of mailboxes. In JSON it may be a single one without the brackets.
type Mailboxes []Mailbox

// UnmarshalJSON reads both forms.
func (m *Mailboxes) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]Mailbox)(m))
	}
	*m = make(Mailboxes, 1)
	return (*m)[0].UnmarshalJSON(b)
}
