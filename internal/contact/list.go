package contact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Opt-in kinds of lists.
const (
	Single = "single" // a row that says subscribed is
	Double = "double" // only with a proof of consent; without one it is pending
)

// List is one list of an account.
type List struct {
	ID          ListID                         `json:"-"`
	Account     string                         `json:"account"`
	Name        string                         `json:"name"`
	DisplayName string                         `json:"display_name,omitempty"`
	OptIn       string                         `json:"opt_in"`
	Topics      []Topic                        `json:"topics,omitempty"`
	Schema      map[string]api.AttributeSchema `json:"schema,omitempty"`
	Created     time.Time                      `json:"created"`
	Updated     time.Time                      `json:"updated"`
	Deleting    bool                           `json:"deleting,omitempty"` // its members are being removed
}

// Topic is one kind of mail of a list.
type Topic struct {
	Number      int    `json:"number"` // of its bit in Topics; never used again
	Name        string `json:"name"`
	DisplayName string `json:"display_name,omitempty"`
	Default     string `json:"default"` // "subscribed" or "unsubscribed"
	Gone        bool   `json:"gone,omitempty"`
}

func (t *Topic) byDefault() Status {
	if t.Default == "unsubscribed" {
		return Unsubscribed
	}
	return Subscribed
}

// Topic returns the one of that name, nil for none.
func (l *List) Topic(name string) *Topic {
	for i := range l.Topics {
		if t := &l.Topics[i]; t.Name == name && !t.Gone {
			return t
		}
	}
	return nil
}

// TopicStates says what a member gets of each topic.
func (l *List) TopicStates(m *Membership) map[string]string {
	states := map[string]string{}
	for i := range l.Topics {
		if t := &l.Topics[i]; !t.Gone {
			states[t.Name] = m.Topics.status(t.Number, t.byDefault()).String()
		}
	}
	return states
}

// Wants tells whether a member wants the mail of a topic, "" for the list as such.
func (l *List) Wants(m *Membership, topic string) bool {
	if m.Status != Subscribed || topic == "" {
		return m.Status == Subscribed
	}
	t := l.Topic(topic)
	return t != nil && m.Topics.status(t.Number, t.byDefault()) == Subscribed
}

// Limits of lists.
const (
	maxTopics  = 64 // that a list ever had
	maxName    = 64
	maxDisplay = 200
	maxSchema  = MaxAttributes
	maxEnum    = 1000
)

// InvalidError is a request that was refused before anything was stored: 422.
type InvalidError struct {
	Code   string
	Detail string
	Errors []api.FieldError
}

func (e *InvalidError) Error() string { return e.Detail }

func invalid(pointer, format string, args ...any) *InvalidError {
	detail := fmt.Sprintf(format, args...)
	return &InvalidError{api.CodeInvalidParameter, detail, []api.FieldError{{Pointer: pointer, Code: api.CodeInvalidParameter, Detail: detail}}}
}

// checkName takes names that can stand in a URL and are no IDs.
func checkName(pointer, name, prefix string) error {
	good := name != "" && len(name) <= maxName && name[0] != '.' && name[0] != '-' && !strings.HasPrefix(name, prefix)
	for i := range len(name) {
		c := name[i]
		good = good && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !good {
		return invalid(pointer, "a name is 1 to %d of a-z 0-9 . _ -, begins with a letter, a digit or _, and not with %s", maxName, prefix)
	}
	return nil
}

func checkDisplay(pointer, s string) error {
	if mail.CleanText(s, maxDisplay) != s {
		return invalid(pointer, "one line of at most %d bytes", maxDisplay)
	}
	return nil
}

func (l *List) check() error {
	if err := errors.Join(checkName("/name", l.Name, listPrefix), checkDisplay("/display_name", l.DisplayName)); err != nil {
		return first(err)
	}
	if l.OptIn != Single && l.OptIn != Double {
		return invalid("/opt_in", `opt_in is "single" or "double"`)
	}
	if len(l.Topics) > maxTopics {
		return invalid("/topics", "a list has at most %d topics, those that it once had among them", maxTopics)
	}
	seen := map[string]bool{}
	for i, t := range l.Topics {
		at := fmt.Sprintf("/topics/%d", i)
		if t.Gone {
			continue
		}
		if err := errors.Join(checkName(at+"/name", t.Name, "top_"), checkDisplay(at+"/display_name", t.DisplayName)); err != nil {
			return first(err)
		}
		if seen[t.Name] {
			return invalid(at+"/name", "the topic %q stands twice", t.Name)
		}
		seen[t.Name] = true
		if t.Default != "subscribed" && t.Default != "unsubscribed" {
			return invalid(at+"/default", `default is "subscribed" or "unsubscribed"`)
		}
	}
	return checkSchema(l.Schema)
}

// first is the first of joined errors: a caller mends one thing at a time, but gets its pointer.
func first(err error) error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()[0]
	}
	return err
}

func getList(tx kv.Tx, id ListID) (*List, error) {
	v, err := tx.Get(tableList, id[:])
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	if v == nil {
		return nil, ErrNotFound
	}
	l, err := decodeList(id, v)
	if err == nil && l.Deleting {
		return nil, ErrNotFound
	}
	return l, err
}

func decodeList(id ListID, b []byte) (*List, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, fmt.Errorf("%w: unknown version of list", errBadRecord)
	}
	l := &List{ID: id}
	d := json.NewDecoder(bytes.NewReader(b[1:]))
	d.UseNumber()
	if err := d.Decode(l); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return l, nil
}

func (l *List) put(tx kv.Tx) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode list: %w", err)
	}
	id := append([]byte(nil), l.ID[:]...)
	if err := tx.Put(tableList, id, append([]byte{recordVersion}, b...)); err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	return nil
}

// CreateList stores a new list; ID and times are set. ErrExists when the account has one of that name. also runs in the
// same transaction, nil for nothing.
func (s *Store) CreateList(ctx context.Context, l *List, also func(kv.Tx) error) error {
	l.ID, l.Created = ListID(mail.NewQueueID(s.now())), s.now()
	l.Updated, l.Deleting = l.Created, false
	if l.OptIn == "" {
		l.OptIn = Single
	}
	for i := range l.Topics {
		l.Topics[i].Number, l.Topics[i].Gone = i, false
		if l.Topics[i].Default == "" {
			l.Topics[i].Default = "subscribed"
		}
	}
	if err := l.check(); err != nil {
		return err
	}
	err := s.DB.Update(ctx, func(tx kv.Tx) error {
		if err := newName(tx, tableListName, l.Account, l.Name, ID(l.ID)); err != nil {
			return err
		}
		if err := l.put(tx); err != nil || also == nil {
			return err
		}
		return also(tx)
	})
	if err != nil {
		return fmt.Errorf("create list: %w", err)
	}
	return nil
}

// newName takes a name for id. It must be free, and there must be room.
func newName(tx kv.Tx, table kv.Table, account, name string, id ID) error {
	n, taken := 0, false
	prefix := accountKey(account)
	err := tx.Scan(table, prefix, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
		n++
		taken = taken || string(k[len(prefix):]) == name && !bytes.Equal(v, id[:])
		return true, nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("read names: %w", err)
	case taken:
		return ErrExists
	case n >= maxLists:
		return ErrTooMany
	}
	return tx.Put(table, emailKey(account, name), append([]byte(nil), id[:]...))
}

// named finds what a name or an ID stands for. Both must be of the account.
func named(tx kv.Tx, table kv.Table, account, ref, prefix string) (ID, error) {
	if strings.HasPrefix(ref, prefix) {
		return parseID(ref, prefix)
	}
	if ref == "" || len(ref) > maxName || strings.IndexByte(ref, 0) >= 0 {
		return ID{}, ErrNotFound
	}
	v, err := tx.Get(table, emailKey(account, ref))
	if err != nil {
		return ID{}, fmt.Errorf("read names: %w", err)
	}
	if len(v) != len(ID{}) {
		return ID{}, ErrNotFound
	}
	return ID(v), nil
}

// ListTx returns the list that ref names, by ID or by name. ErrNotFound when the account has none.
func (s *Store) ListTx(tx kv.Tx, account, ref string) (*List, error) {
	id, err := named(tx, tableListName, account, ref, listPrefix)
	if err != nil {
		return nil, err
	}
	l, err := getList(tx, ListID(id))
	if err == nil && l.Account != account {
		return nil, ErrNotFound
	}
	return l, err
}

// List is ListTx in a transaction of its own, with the list's counters.
func (s *Store) List(ctx context.Context, account, ref string) (l *List, n Counts, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		if l, err = s.ListTx(tx, account, ref); err != nil {
			return err
		}
		n, err = countsTx(tx, l.ID)
		return err
	})
	return l, n, err
}

// countsTx adds the counters of all nodes.
func countsTx(tx kv.Tx, list ListID) (Counts, error) {
	var sum Counts
	err := tx.Scan(tableCount, list[:], kv.PrefixEnd(list[:]), func(_, v []byte) (bool, error) {
		c, err := decodeCounts(v)
		sum.add(c)
		return true, err
	})
	if err != nil {
		return sum, fmt.Errorf("read counters of list: %w", err)
	}
	return sum, nil
}

// change adds to this node's counters of a list.
func (s *Store) change(tx kv.Tx, list ListID, by Counts) error {
	if by == (Counts{}) {
		return nil
	}
	key := append(append([]byte(nil), list[:]...), s.Node...)
	v, err := tx.Get(tableCount, key)
	if err != nil {
		return fmt.Errorf("read counters of list: %w", err)
	}
	c, err := decodeCounts(v)
	if err != nil {
		return err
	}
	c.add(by)
	return tx.Put(tableCount, key, c.encode())
}

// ListInfo is a list with its counters.
type ListInfo struct {
	*List
	Counts Counts
}

// Lists returns up to limit lists of an account, all with limit 0, by name, and the cursor of the next page.
func (s *Store) Lists(ctx context.Context, account, cursor string, limit int) (page []ListInfo, next string, err error) {
	prefix := accountKey(account)
	from := prefix
	if cursor != "" {
		from = append(emailKey(account, cursor), 0)
	}
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		last := ""
		var ids []ListID
		err := tx.Scan(tableListName, from, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
			if limit > 0 && len(ids) == limit {
				next = last
				return false, nil
			}
			if len(v) != len(ListID{}) {
				return false, fmt.Errorf("%w: name of list", errBadRecord)
			}
			ids, last = append(ids, ListID(v)), string(k[len(prefix):])
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, id := range ids {
			l, err := getList(tx, id)
			if err != nil {
				return err
			}
			n, err := countsTx(tx, id)
			if err != nil {
				return err
			}
			page = append(page, ListInfo{l, n})
		}
		return nil
	})
	return page, next, err
}
