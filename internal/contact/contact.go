package contact

import (
	"errors"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Sentinel errors.
var (
	ErrNotFound  = errors.New("no such contact, list, segment or import")
	ErrExists    = errors.New("the name is taken")
	ErrTooMany   = errors.New("too many lists or segments")
	ErrErased    = errors.New("this person was erased and asked to be forgotten")
	ErrBadCursor = errors.New("bad cursor")
	ErrState     = errors.New("not possible in this state") // its text is written for callers
)

// ID names a contact, a list, a segment or an import. IDs sort by the time at which they were made.
type ID mail.QueueID

// The prefixes of IDs in the API.
const (
	contactPrefix = "con_"
	listPrefix    = "lst_"
	segmentPrefix = "seg_"
	importPrefix  = "imp_"
)

// ListID names a list.
type ListID ID

func (id ID) text(prefix string) string { return prefix + mail.QueueID(id).String() }

// String is the ID of a contact in the API.
func (id ID) String() string { return id.text(contactPrefix) }

// String is the ID of a list in the API.
func (id ListID) String() string { return ID(id).text(listPrefix) }

func parseID(s, prefix string) (ID, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	id, err := mail.ParseQueueID(rest)
	if !ok || err != nil {
		return ID{}, ErrNotFound
	}
	return ID(id), nil
}

// ParseListID is the inverse of ListID.String; anything else is ErrNotFound.
func ParseListID(s string) (ListID, error) {
	id, err := parseID(s, listPrefix)
	return ListID(id), err
}

// Contact is one mailbox of one account.
type Contact struct {
	ID         ID
	To         mail.Path // as it was spelled last
	Attributes []Attribute
	Locale     string // BCP 47, such as "fr" or "ko-KR"
	Timezone   string // IANA, such as "Europe/Paris"
	Lists      []ListID
	Created    time.Time
	Updated    time.Time
	Source     string // of the last change: "api", "import:imp_…", "source:src_…"
}

// Membership is what joins a contact to a list.
type Membership struct {
	List    ListID
	Status  Status
	Topics  Topics
	Joined  time.Time
	Changed time.Time // of the status
	Source  string    // of the status
	Consent Consent
}

// Topics says which topics of a list a contact has decided upon, and how: one bit for each topic's number. On the others
// the topic's default holds.
type Topics struct{ Known, On uint64 }

// status of topic number n.
func (t Topics) status(n int, byDefault Status) Status {
	switch bit := uint64(1) << n; {
	case t.Known&bit == 0:
		return byDefault
	case t.On&bit != 0:
		return Subscribed
	}
	return Unsubscribed
}

func (t *Topics) set(n int, s Status) {
	bit := uint64(1) << n
	t.Known |= bit
	if t.On &^= bit; s == Subscribed {
		t.On |= bit
	}
}

// Consent proves that somebody asked for the mail of a list.
type Consent struct {
	At     time.Time // zero: there is no proof
	IP     string
	Source string // the form or page
	Text   string // what was agreed to
}

// IsZero tells that there is no proof.
func (c Consent) IsZero() bool { return c == Consent{} }
