package campaign

import (
	"context"
	"errors"
	"fmt"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// members is an audience whose lists were found: names may be given away, IDs are not.
type members struct {
	List    string   `json:"list"`
	Exclude []string `json:"exclude,omitempty"`
}

// list is the ID of the list that the campaign goes to; zero for uploaded recipients.
func (m *members) list() contacts.ListID {
	if m == nil {
		return contacts.ListID{}
	}
	id, err := contacts.ParseListID(m.List)
	if err != nil {
		return contacts.ListID{}
	}
	return id
}

const maxExcluded = 20

// findAudience finds the lists of an audience, and adds what is wrong with it to bad.
func (s *Service) findAudience(ctx context.Context, account string, a *api.Audience, bad *Invalid) (*members, error) {
	if a == nil {
		return nil, nil
	}
	switch a.Dedupe {
	case "", "address", "contact":
	default:
		bad.add("/audience/dedupe", api.CodeInvalidParameter, `%q is not "address" or "contact"`, clip(a.Dedupe, 40))
	}
	if a.List == "" || s.contacts == nil {
		bad.add("/audience/list", api.CodeInvalidParameter, "the name of a list is needed")
		return nil, nil
	}
	if len(a.ExcludeLists) > maxExcluded {
		bad.add("/audience/exclude_lists", api.CodeInvalidParameter, "more than %d lists", maxExcluded)
		return nil, nil
	}
	if len(a.Segment) > 0 && string(a.Segment) != "null" {
		if _, err := contacts.ParseCondition(a.Segment); err != nil {
			e, ok := errors.AsType[*contacts.InvalidError](err)
			if !ok {
				return nil, err
			}
			pointer := ""
			if len(e.Errors) > 0 {
				pointer = e.Errors[0].Pointer
			}
			bad.add("/audience/segment"+pointer, e.Code, "%s", e.Detail)
		}
	}
	m := &members{}
	err := s.db.View(ctx, func(tx kv.Tx) error {
		found := func(pointer, name string) (string, error) {
			l, err := s.contacts.ListTx(tx, account, name)
			if errors.Is(err, contacts.ErrNotFound) {
				bad.add(pointer, "list_not_found", "no list %q in this account", clip(name, 80))
				return "", nil
			}
			if err != nil {
				return "", fmt.Errorf("find list: %w", err)
			}
			if pointer == "/audience/list" && a.Topic != "" && l.Topic(a.Topic) == nil {
				bad.add("/audience/topic", "topic_not_found", "the list %q has no topic %q", l.Name, clip(a.Topic, 80))
			}
			return l.ID.String(), nil
		}
		var err error
		if m.List, err = found("/audience/list", a.List); err != nil {
			return err
		}
		for i, name := range a.ExcludeLists {
			id, err := found(fmt.Sprintf("/audience/exclude_lists/%d", i), name)
			if err != nil {
				return err
			}
			m.Exclude = append(m.Exclude, id)
		}
		return nil
	})
	return m, err
}

// audienceOf is a record's audience as contacts understand it.
func audienceOf(r *record) (*contacts.Audience, error) {
	a := &contacts.Audience{List: r.Members.list(), Topic: r.Audience.Topic, Until: r.Cut, Now: r.Cut}
	for _, text := range r.Members.Exclude {
		id, err := contacts.ParseListID(text)
		if err != nil {
			return nil, fmt.Errorf("%w: list of audience", errBadRecord)
		}
		a.Exclude = append(a.Exclude, id)
	}
	if len(r.Audience.Segment) > 0 && string(r.Audience.Segment) != "null" {
		where, err := contacts.ParseCondition(r.Audience.Segment)
		if err != nil {
			return nil, fmt.Errorf("%w: segment of audience", errBadRecord)
		}
		a.Where = where
	}
	return a, nil
}

// audiencePage is how many contacts one transaction takes over.
const audiencePage = 2000

// takeOver copies one page of the audience to the recipients, in one transaction with the place where the next begins.
func (s *Service) takeOver(ctx context.Context, r *record) error {
	a, err := audienceOf(r)
	if err != nil {
		return err
	}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		now, err := getRecord(tx, r.ID)
		if err != nil || now.State != Preparing || now.Ready {
			return err
		}
		var after contacts.ID
		if len(now.Taken) == len(after) {
			after = contacts.ID(now.Taken)
		}
		page, next, done, err := s.contacts.PageTx(tx, a, after, audiencePage)
		if errors.Is(err, contacts.ErrNotFound) { // the list was deleted: nobody wants its mail
			page, next, done = nil, after, true
		} else if err != nil {
			return fmt.Errorf("read audience: %w", err)
		}
		batch := make([]recipient, 0, len(page))
		for i := range page {
			rec, err := recipientOf(&page[i])
			if err != nil {
				return err
			}
			batch = append(batch, rec)
		}
		sum, err := putRecipients(tx, r.ID, batch)
		if err != nil {
			return err
		}
		if err := s.change(tx, r.ID, func(t *tally) { t.total += sum.total }); err != nil {
			return err
		}
		now.Taken, now.Ready = append([]byte(nil), next[:]...), done
		return now.put(tx)
	})
	if err != nil {
		return fmt.Errorf("take audience over: %w", err)
	}
	return nil
}

// recipientOf makes a recipient of a contacts. Its language and time zone become attributes where it has none of that name.
func recipientOf(c *contacts.Recipient) (recipient, error) {
	attributes, err := readAttributes(make([]attribute, 0, 8), c.Data)
	if err != nil {
		return recipient{}, err
	}
	for _, extra := range []attribute{{"timezone", kindString, c.Timezone}, {"locale", kindString, c.Locale}} {
		if _, has := find(attributes, extra.name); !has && extra.s != "" {
			attributes = append(attributes, extra)
		}
	}
	return recipient{to: c.To, attributes: attributes}, nil
}

func find(list []attribute, name string) (attribute, bool) {
	for _, a := range list {
		if a.name == name {
			return a, true
		}
	}
	return attribute{}, false
}

// attributesFor returns what contacts know of a mailbox, nothing where there is none.
func (s *Service) attributesFor(ctx context.Context, account string, to mail.Path) ([]attribute, error) {
	if s.contacts == nil {
		return nil, nil
	}
	f, err := s.contacts.Get(ctx, account, "email:"+to.String())
	if errors.Is(err, contacts.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find contact: %w", err)
	}
	rec, err := recipientOf(&contacts.Recipient{
		ID: f.ID, To: f.To, Locale: f.Locale, Timezone: f.Timezone, Data: string(contacts.AppendAttributes(nil, f.Attributes)),
	})
	return rec.attributes, err
}
