package contact

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Segment is a stored question about the members of a list.
type Segment struct {
	ID      ID                `json:"-"`
	Account string            `json:"account"`
	Request api.CreateSegment `json:"request"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
}

// String is the segment's ID in the API.
func (g *Segment) String() string { return g.ID.text(segmentPrefix) }

// maxSegmentLists bounds the lists that a segment names.
const maxSegmentLists = 50

// AudienceTx resolves what a segment, or a campaign, asks for. Errors of the request are *InvalidError and point to the
// place; a list that there is not is one of them.
func (s *Store) AudienceTx(tx kv.Tx, account string, req *api.CreateSegment) (*Audience, error) {
	l, err := s.ListTx(tx, account, req.List)
	if errors.Is(err, ErrNotFound) {
		return nil, invalid("/list", "there is no list %q", mail.CleanText(req.List, 80))
	}
	if err != nil {
		return nil, err
	}
	a := &Audience{List: l.ID, Topic: req.Topic}
	if req.Topic != "" && l.Topic(req.Topic) == nil {
		return nil, invalid("/topic", "the list %s has no topic %q", l.Name, mail.CleanText(req.Topic, 80))
	}
	for _, lists := range []struct {
		pointer string
		refs    []string
		into    *[]ListID
	}{{"/include_lists", req.IncludeLists, &a.Also}, {"/exclude_lists", req.ExcludeLists, &a.Exclude}} {
		if len(lists.refs) > maxSegmentLists {
			return nil, invalid(lists.pointer, "more than %d lists", maxSegmentLists)
		}
		for i, ref := range lists.refs {
			other, err := s.ListTx(tx, account, ref)
			if errors.Is(err, ErrNotFound) {
				return nil, invalid(fmt.Sprintf("%s/%d", lists.pointer, i), "there is no list %q", mail.CleanText(ref, 80))
			}
			if err != nil {
				return nil, err
			}
			*lists.into = append(*lists.into, other.ID)
		}
	}
	if len(req.Where) > 0 && string(req.Where) != "null" {
		if a.Where, err = ParseCondition(req.Where); err != nil {
			return nil, within("/where", err)
		}
	}
	return a, nil
}

// within puts a pointer before those of an error.
func within(pointer string, err error) error {
	e, ok := errors.AsType[*InvalidError](err)
	if !ok {
		return err
	}
	out := *e
	out.Errors = append([]api.FieldError(nil), e.Errors...)
	for i := range out.Errors {
		out.Errors[i].Pointer = pointer + out.Errors[i].Pointer
	}
	if len(out.Errors) == 0 {
		out.Errors = []api.FieldError{{Pointer: pointer, Code: out.Code, Detail: out.Detail}}
	}
	return &out
}

// CreateSegment checks a segment and stores it. also runs in the same transaction, nil for nothing.
func (s *Store) CreateSegment(ctx context.Context, account string, req *api.CreateSegment, also func(kv.Tx, *Segment) error) (*Segment, error) {
	g := &Segment{ID: ID(mail.NewQueueID(s.now())), Account: account, Request: *req, Created: s.now()}
	err := s.DB.Update(ctx, func(tx kv.Tx) error {
		if err := s.putSegment(tx, g); err != nil || also == nil {
			return err
		}
		return also(tx, g)
	})
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	return g, nil
}

// PatchSegment changes a segment; change may refuse.
func (s *Store) PatchSegment(ctx context.Context, account, ref string, change func(*Segment) error) (g *Segment, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		if g, err = s.SegmentTx(tx, account, ref); err != nil {
			return err
		}
		before := g.Request.Name
		if err := change(g); err != nil {
			return err
		}
		if before != g.Request.Name {
			if err := tx.Delete(tableSegmentName, emailKey(account, before)); err != nil {
				return err
			}
		}
		return s.putSegment(tx, g)
	})
	if err != nil {
		return nil, fmt.Errorf("change segment: %w", err)
	}
	return g, nil
}

func (s *Store) putSegment(tx kv.Tx, g *Segment) error {
	if err := checkName("/name", g.Request.Name, segmentPrefix); err != nil {
		return err
	}
	if _, err := s.AudienceTx(tx, g.Account, &g.Request); err != nil {
		return err
	}
	g.Request.Account, g.Updated = "", s.now()
	if err := newName(tx, tableSegmentName, g.Account, g.Request.Name, g.ID); err != nil {
		return err
	}
	return putJSON(tx, tableSegment, append([]byte(nil), g.ID[:]...), g)
}

// SegmentTx returns the segment that ref names, by ID or by name. ErrNotFound when the account has none.
func (s *Store) SegmentTx(tx kv.Tx, account, ref string) (*Segment, error) {
	id, err := named(tx, tableSegmentName, account, ref, segmentPrefix)
	if err != nil {
		return nil, err
	}
	v, err := tx.Get(tableSegment, id[:])
	if err != nil {
		return nil, fmt.Errorf("read segment: %w", err)
	}
	if v == nil {
		return nil, ErrNotFound
	}
	g, err := decodeSegment(id, v)
	if err == nil && g.Account != account {
		return nil, ErrNotFound
	}
	return g, err
}

func decodeSegment(id ID, v []byte) (*Segment, error) {
	g := &Segment{ID: id}
	return g, readJSON(tableSegment, v, g)
}

// Segment is SegmentTx in a transaction of its own.
func (s *Store) Segment(ctx context.Context, account, ref string) (g *Segment, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		g, err = s.SegmentTx(tx, account, ref)
		return err
	})
	return g, err
}

// Segments returns up to limit segments of an account by name, and the cursor of the next page.
func (s *Store) Segments(ctx context.Context, account, cursor string, limit int) (page []*Segment, next string, err error) {
	prefix := accountKey(account)
	from := prefix
	if cursor != "" {
		from = append(emailKey(account, cursor), 0)
	}
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		var names []string
		err := tx.Scan(tableSegmentName, from, kv.PrefixEnd(prefix), func(k, _ []byte) (bool, error) {
			if len(names) == limit {
				next = names[limit-1]
				return false, nil
			}
			names = append(names, string(k[len(prefix):]))
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			g, err := s.SegmentTx(tx, account, name)
			if err != nil {
				return err
			}
			page = append(page, g)
		}
		return nil
	})
	return page, next, err
}

// DeleteSegment removes one. check may refuse, nil for no check.
func (s *Store) DeleteSegment(ctx context.Context, account, ref string, check func(*Segment) error) error {
	err := s.DB.Update(ctx, func(tx kv.Tx) error {
		g, err := s.SegmentTx(tx, account, ref)
		if err == nil && check != nil {
			err = check(g)
		}
		if err != nil {
			return err
		}
		if err := tx.Delete(tableSegmentName, emailKey(account, g.Request.Name)); err != nil {
			return err
		}
		return tx.Delete(tableSegment, append([]byte(nil), g.ID[:]...))
	})
	if err != nil {
		return fmt.Errorf("delete segment: %w", err)
	}
	return nil
}

// CountSegment counts whom a request means.
func (s *Store) CountSegment(ctx context.Context, account string, req *api.CreateSegment) (int64, error) {
	var a *Audience
	err := s.DB.View(ctx, func(tx kv.Tx) (err error) {
		a, err = s.AudienceTx(tx, account, req)
		return err
	})
	if err != nil {
		return 0, err
	}
	return s.Count(ctx, a)
}
