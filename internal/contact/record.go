package contact

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"relayd/internal/kv"
)

// Tables. IDs are 12 bytes in all keys; an account ends with a NUL.
const (
	tableContact     kv.Table = "contact"              // account, ID → contact
	tableEmail       kv.Table = "contact_email"        // account, mailbox → contact's ID
	tableMember      kv.Table = "contact_member"       // list, contact → membership
	tableGone        kv.Table = "contact_gone"         // account, keyed hash of the mailbox → why it must not come back
	tableList        kv.Table = "contact_list"         // list → JSON
	tableListName    kv.Table = "contact_list_name"    // account, name → list
	tableCount       kv.Table = "contact_count"        // list, node → counters of that node
	tableSegment     kv.Table = "contact_segment"      // segment → JSON
	tableSegmentName kv.Table = "contact_segment_name" // account, name → segment
	tableSecret      kv.Table = "contact_secret"       // "erased" → key of the hashes in contact_gone
)

// Errors of decoders. They are made once: a walk over a million records makes none for each. All wrap errBadRecord.
var (
	errBadRecord     = errors.New("bad contact record")
	errBadContact    = fmt.Errorf("%w: contact", errBadRecord)
	errBadMembership = fmt.Errorf("%w: membership", errBadRecord)
	errBadGone       = fmt.Errorf("%w: deleted contact", errBadRecord)
	errBadAttribute  = fmt.Errorf("%w: attribute", errBadRecord)
)

const recordVersion = 1

func accountKey(account string) []byte { return append([]byte(account), 0) }

func contactKey(account string, id ID) []byte {
	return appendContactKey(make([]byte, 0, len(account)+1+len(id)), account, id)
}

func appendContactKey(b []byte, account string, id ID) []byte {
	return append(append(append(b, account...), 0), id[:]...)
}

func emailKey(account, key string) []byte {
	return appendEmailKey(make([]byte, 0, len(account)+1+len(key)), account, key)
}

func appendEmailKey(b []byte, account, key string) []byte {
	return append(append(append(b, account...), 0), key...)
}

func memberKey(list ListID, id ID) []byte {
	return appendMemberKey(make([]byte, 0, len(list)+len(id)), list, id)
}

func appendMemberKey(b []byte, list ListID, id ID) []byte {
	return append(append(b, list[:]...), id[:]...)
}

// appendTime writes Unix milliseconds, 0 for the zero time.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendUvarint(b, 0)
	}
	return binary.AppendUvarint(b, uint64(max(t.UnixMilli(), 1))) //nolint:gosec // not negative
}

func cutTime(s string) (time.Time, string, bool) {
	ms, s, ok := cutUvarint(s)
	if !ok || ms > 1<<48 {
		return time.Time{}, "", false
	}
	if ms == 0 {
		return time.Time{}, s, true
	}
	return time.UnixMilli(int64(ms)).UTC(), s, true //nolint:gosec // checked
}

// size is about what the record of the contact needs, and not less.
func (c *Contact) size() int {
	size := 64 + len(c.To.Local) + len(c.To.Domain) + len(c.Source) + len(c.Locale) + len(c.Timezone) + len(ListID{})*len(c.Lists)
	for _, a := range c.Attributes {
		size += len(a.Name) + len(a.Text) + 6
	}
	return size
}

func (c *Contact) encode() []byte { return c.append(make([]byte, 0, c.size())) }

// append writes version, created, updated, local part, domain, locale, time zone, source, number and IDs of the lists,
// then the attributes up to the end. The ID stands in the key.
func (c *Contact) append(b []byte) []byte {
	b = append(b, recordVersion)
	b = appendTime(b, c.Created)
	b = appendTime(b, c.Updated)
	for _, s := range []string{c.To.Local, c.To.Domain, c.Locale, c.Timezone, c.Source} {
		b = appendText(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(c.Lists)))
	for _, l := range c.Lists {
		b = append(b, l[:]...)
	}
	return AppendAttributes(b, c.Attributes)
}

// maxLists bounds the lists of one account, and so those of one contact.
const maxLists = 1000

// decodeHead reads all but the attributes, which it returns as they are stored. The texts share memory with s.
func decodeHead(c *Contact, id ID, s string) (attributes string, err error) {
	if s == "" || s[0] != recordVersion {
		return "", fmt.Errorf("%w: unknown version of contact", errBadRecord)
	}
	c.ID = id
	ok := true
	s = s[1:]
	for _, t := range []*time.Time{&c.Created, &c.Updated} {
		if *t, s, ok = cutTime(s); !ok {
			return "", errBadContact
		}
	}
	for _, f := range []*string{&c.To.Local, &c.To.Domain, &c.Locale, &c.Timezone, &c.Source} {
		if *f, s, ok = cutText(s); !ok {
			return "", errBadContact
		}
	}
	n, s, ok := cutUvarint(s)
	if !ok || n > maxLists || uint64(len(s)) < n*uint64(len(ListID{})) {
		return "", errBadContact
	}
	c.Lists = c.Lists[:0]
	for range n {
		c.Lists = append(c.Lists, ListID([]byte(s[:len(ListID{})])))
		s = s[len(ListID{}):]
	}
	return s, nil
}

func decodeContact(id ID, b []byte) (*Contact, error) {
	c := &Contact{}
	rest, err := decodeHead(c, id, string(b))
	if err != nil {
		return nil, err
	}
	c.Attributes, err = ReadAttributes(nil, rest)
	return c, err
}

// size is about what the record of the membership needs, and not less.
func (m *Membership) size() int {
	return 64 + len(m.Source) + len(m.Consent.IP) + len(m.Consent.Source) + len(m.Consent.Text)
}

func (m *Membership) encode() []byte { return m.append(make([]byte, 0, m.size())) }

// append writes version, status, topics, joined, changed, source and the consent. List and contact stand in the key.
func (m *Membership) append(b []byte) []byte {
	b = append(b, recordVersion, byte(m.Status))
	b = binary.AppendUvarint(b, m.Topics.Known)
	b = binary.AppendUvarint(b, m.Topics.On)
	b = appendTime(b, m.Joined)
	b = appendTime(b, m.Changed)
	b = appendText(b, m.Source)
	b = appendTime(b, m.Consent.At)
	for _, s := range []string{m.Consent.IP, m.Consent.Source, m.Consent.Text} {
		b = appendText(b, s)
	}
	return b
}

func decodeMembership(list ListID, s string) (m Membership, err error) {
	if len(s) < 2 || s[0] != recordVersion {
		return m, fmt.Errorf("%w: unknown version of membership", errBadRecord)
	}
	m.List, m.Status = list, Status(s[1])
	if m.Status == Absent || m.Status >= Invalid {
		return Membership{}, errBadMembership
	}
	ok := true
	s = s[2:]
	for _, v := range []*uint64{&m.Topics.Known, &m.Topics.On} {
		if *v, s, ok = cutUvarint(s); !ok {
			return Membership{}, errBadMembership
		}
	}
	for _, t := range []*time.Time{&m.Joined, &m.Changed} {
		if *t, s, ok = cutTime(s); !ok {
			return Membership{}, errBadMembership
		}
	}
	if m.Source, s, ok = cutText(s); !ok {
		return Membership{}, errBadMembership
	}
	if m.Consent.At, s, ok = cutTime(s); !ok {
		return Membership{}, errBadMembership
	}
	for _, f := range []*string{&m.Consent.IP, &m.Consent.Source, &m.Consent.Text} {
		if *f, s, ok = cutText(s); !ok {
			return Membership{}, errBadMembership
		}
	}
	if s != "" {
		return Membership{}, fmt.Errorf("%w: %d bytes too many", errBadRecord, len(s))
	}
	return m, nil
}

// peekMembership reads as much of a membership as tells whether its contact wants mail; joined is read where it is asked for.
func peekMembership(b []byte, withJoined bool) (m Membership, err error) {
	if len(b) < 2 || b[0] != recordVersion {
		return m, fmt.Errorf("%w: unknown version of membership", errBadRecord)
	}
	if m.Status = Status(b[1]); m.Status == Absent || m.Status >= Invalid {
		return Membership{}, errBadMembership
	}
	b = b[2:]
	for _, v := range []*uint64{&m.Topics.Known, &m.Topics.On} {
		n := 0
		if *v, n = binary.Uvarint(b); n <= 0 {
			return Membership{}, errBadMembership
		}
		b = b[n:]
	}
	if !withJoined {
		return m, nil
	}
	ms, n := binary.Uvarint(b)
	if n <= 0 || ms > 1<<48 {
		return Membership{}, errBadMembership
	}
	if ms > 0 {
		m.Joined = time.UnixMilli(int64(ms)).UTC() //nolint:gosec // checked
	}
	return m, nil
}

// gone is why a mailbox must not come back by an import.
type gone struct {
	at     time.Time
	erased bool     // the person asked to be forgotten
	lists  []ListID // from which it was unsubscribed when it was deleted
}

func (g *gone) encode() []byte {
	b := []byte{recordVersion, 0}
	if g.erased {
		b[1] = 1
	}
	b = appendTime(b, g.at)
	b = binary.AppendUvarint(b, uint64(len(g.lists)))
	for _, l := range g.lists {
		b = append(b, l[:]...)
	}
	return b
}

func decodeGone(s string) (g gone, err error) {
	if len(s) < 2 || s[0] != recordVersion || s[1] > 1 {
		return g, fmt.Errorf("%w: unknown version of a deleted contact", errBadRecord)
	}
	g.erased = s[1] == 1
	ok := false
	if g.at, s, ok = cutTime(s[2:]); !ok {
		return gone{}, errBadGone
	}
	n, s, ok := cutUvarint(s)
	if !ok || n > maxLists || uint64(len(s)) != n*uint64(len(ListID{})) {
		return gone{}, errBadGone
	}
	for range n {
		g.lists = append(g.lists, ListID([]byte(s[:len(ListID{})])))
		s = s[len(ListID{}):]
	}
	return g, nil
}

// Counts is how many contacts a list has, by status.
type Counts struct{ Contacts, Subscribed, Unsubscribed, Pending int64 }

func (c *Counts) fields() []*int64 {
	return []*int64{&c.Contacts, &c.Subscribed, &c.Unsubscribed, &c.Pending}
}

func (c *Counts) add(o Counts) {
	from := o.fields()
	for i, f := range c.fields() {
		*f += *from[i]
	}
}

// count adds n contacts of a status.
func (c *Counts) count(s Status, n int64) {
	c.Contacts += n
	switch s {
	case Subscribed:
		c.Subscribed += n
	case Unsubscribed:
		c.Unsubscribed += n
	case Pending:
		c.Pending += n
	}
}

func (c *Counts) encode() []byte {
	b := []byte{recordVersion}
	for _, f := range c.fields() {
		b = binary.AppendVarint(b, *f)
	}
	return b
}

func decodeCounts(b []byte) (c Counts, err error) {
	if len(b) == 0 {
		return c, nil
	}
	if b[0] != recordVersion {
		return c, fmt.Errorf("%w: unknown version of counters", errBadRecord)
	}
	b = b[1:]
	for _, f := range c.fields() {
		v, n := binary.Varint(b)
		if n <= 0 {
			return Counts{}, fmt.Errorf("%w: counters", errBadRecord)
		}
		*f, b = v, b[n:]
	}
	if len(b) > 0 {
		return Counts{}, fmt.Errorf("%w: counters", errBadRecord)
	}
	return c, nil
}
