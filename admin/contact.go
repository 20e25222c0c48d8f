package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// contactRoutes are the calls about lists, contacts and segments.
func (s *Server) contactRoutes() []route {
	const ok, created, empty = http.StatusOK, http.StatusCreated, http.StatusNoContent
	const read, write = "contacts:read", "contacts:write"
	get := func(path, summary string, call endpoint, query ...string) route {
		return route{http.MethodGet, path, read, summary, query, ok, 0, false, call}
	}
	with := func(method, path, summary string, status int, call endpoint) route {
		return route{method, path, write, summary, []string{"account"}, status, smallBody, false, call}
	}
	del := func(path, summary string, status int, call endpoint, query ...string) route {
		return route{http.MethodDelete, path, write, summary, query, status, 0, false, call}
	}
	batch := with(http.MethodPost, "/v1/contacts/batch", "Write up to 1000 contacts to a list", ok,
		as[api.ContactBatchResult](takes(s.batchContacts)))
	batch.limit = batchBody
	count := with(http.MethodPost, "/v1/segments/{id}/count", "Count whom a segment means", ok, gives(s.countSegment))
	count.scope = read
	return []route{
		with(http.MethodPost, "/v1/lists", "Create a list", created, as[api.ContactList](takes(s.createList))),
		get("/v1/lists", "List the lists by name", lists(s, (*request).account, s.listLists), "account", "limit", "cursor"),
		get("/v1/lists/{id}", "Show a list, by ID or name", gives(s.showList), "account"),
		with(http.MethodPatch, "/v1/lists/{id}", "Change a list", ok, takes(s.patchList)),
		del("/v1/lists/{id}", "Delete a list; its contacts stay", empty, streams(s.deleteList), "account"),
		get("/v1/lists/{id}/contacts", "List the contacts of a list", gives(s.listContacts), "account", "status", "limit", "cursor"),

		with(http.MethodPut, "/v1/contacts/{id}", "Create a contact, or replace its attributes, by ID or email:ADDRESS", ok, takes(s.putContact)),
		get("/v1/contacts/{id}", "Show a contact, by ID or email:ADDRESS", gives(s.showContact), "account"),
		with(http.MethodPatch, "/v1/contacts/{id}", "Change a contact, by ID or email:ADDRESS", ok, takes(s.patchContact)),
		del("/v1/contacts/{id}", "Delete a contact; with erase, no import brings it back", ok, gives(s.deleteContact), "account", "erase"),
		batch,
		get("/v1/contacts/{id}/activity", "What was sent to a contact, and what became of it, the last first", lists(s, (*request).account, s.contactActivity),
			"account", "limit", "cursor"),

		with(http.MethodPost, "/v1/segments", "Create a segment", created, as[api.Segment](takes(s.createSegment))),
		get("/v1/segments", "List the segments by name", lists(s, (*request).account, s.listSegments), "account", "limit", "cursor"),
		get("/v1/segments/{id}", "Show a segment, by ID or name", gives(s.showSegment), "account"),
		with(http.MethodPatch, "/v1/segments/{id}", "Change a segment", ok, takes(s.patchSegment)),
		del("/v1/segments/{id}", "Delete a segment", empty, streams(s.deleteSegment), "account"),
		count,
	}
}

const (
	batchBody = 16 << 20
	maxBatch  = 1000
)

// accountOf is the account that a body names, or the query.
func accountOf(r *request, named string) (string, error) {
	if named == "" {
		named = r.URL.Query().Get("account")
	}
	return r.caller.account(named)
}

// etag names the state of a resource by what the API shows of it.
func etag(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// matches refuses a change of what is not as the caller saw it (RFC 9110 section 13.1.1).
func matches(r *request, tag string) error {
	wanted := r.Header.Get("If-Match")
	if wanted == "" || wanted == "*" && tag != "" {
		return nil
	}
	for want := range strings.SplitSeq(wanted, ",") {
		if tag != "" && strings.TrimSpace(want) == tag {
			return nil
		}
	}
	return &api.Problem{Status: http.StatusPreconditionFailed, Code: api.CodeETagMismatch, Detail: "It was changed meanwhile: read it again."}
}

func listOf(l *contact.List, n contact.Counts) api.ContactList {
	out := api.ContactList{
		ID: l.ID.String(), Account: l.Account, Name: l.Name, DisplayName: l.DisplayName, OptIn: l.OptIn, Topics: []api.Topic{},
		AttributesSchema: l.Schema, CreatedAt: l.Created, UpdatedAt: l.Updated,
	}
	for _, t := range l.Topics {
		if !t.Gone {
			out.Topics = append(out.Topics, api.Topic{Name: t.Name, DisplayName: t.DisplayName, Default: t.Default})
		}
	}
	if out.AttributesSchema == nil {
		out.AttributesSchema = map[string]api.AttributeSchema{}
	}
	out.ETag = etag(out)
	out.ContactCount, out.SubscribedCount, out.UnsubscribedCount, out.PendingCount = n.Contacts, n.Subscribed, n.Unsubscribed, n.Pending
	return out
}

func topicsOf(in []api.Topic) []contact.Topic {
	topics := make([]contact.Topic, 0, len(in))
	for _, t := range in {
		topics = append(topics, contact.Topic{Name: t.Name, DisplayName: t.DisplayName, Default: t.Default})
	}
	return topics
}

func (s *Server) createList(r *request, in *api.CreateList) (any, error) {
	account, err := accountOf(r, in.Account)
	if err != nil {
		return nil, err
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.ContactList, error) {
		l := &contact.List{
			Account: account, Name: in.Name, DisplayName: in.DisplayName, OptIn: in.OptIn, Topics: topicsOf(in.Topics), Schema: in.AttributesSchema,
		}
		err := s.deps.Contacts.CreateList(r.Context(), l, func(tx kv.Tx) error {
			return o.recordTx(tx, http.StatusCreated, listOf(l, contact.Counts{}))
		})
		if err != nil {
			return api.ContactList{}, err
		}
		o.done()
		r.w.Header().Set("Location", "/v1/lists/"+l.ID.String())
		return listOf(l, contact.Counts{}), nil
	})
}

func (s *Server) listLists(r *request, l list) ([]api.ContactList, string, error) {
	found, next, err := s.deps.Contacts.Lists(r.Context(), l.account, l.cursor, l.limit)
	return each(found, func(x contact.ListInfo) api.ContactList { return listOf(x.List, x.Counts) }), next, err
}

func (s *Server) showList(r *request) (api.ContactList, error) {
	account, err := r.account()
	if err != nil {
		return api.ContactList{}, err
	}
	l, n, err := s.deps.Contacts.List(r.Context(), account, r.PathValue("id"))
	if err != nil {
		return api.ContactList{}, err
	}
	out := listOf(l, n)
	r.w.Header().Set("ETag", out.ETag)
	return out, nil
}

func (s *Server) patchList(r *request, in *api.PatchList) (api.ContactList, error) {
	account, err := r.account()
	if err != nil {
		return api.ContactList{}, err
	}
	_, err = s.deps.Contacts.PatchList(r.Context(), account, r.PathValue("id"), func(l *contact.List) error {
		if err := matches(r, listOf(l, contact.Counts{}).ETag); err != nil {
			return err
		}
		if in.DisplayName != nil {
			l.DisplayName = *in.DisplayName
		}
		if in.OptIn != nil {
			l.OptIn = *in.OptIn
		}
		if in.Topics != nil {
			l.SetTopics(topicsOf(*in.Topics))
		}
		if in.AttributesSchema != nil {
			l.Schema = *in.AttributesSchema
		}
		return nil
	})
	if err != nil {
		return api.ContactList{}, err
	}
	return s.showList(r)
}

func (s *Server) deleteList(r *request) error {
	account, err := r.account()
	if err != nil {
		return err
	}
	return s.deps.Contacts.DeleteList(r.Context(), account, r.PathValue("id"), func(l *contact.List) error {
		return matches(r, listOf(l, contact.Counts{}).ETag)
	})
}

// contactOf is a contact as the API shows it; asked is the list that the call was about, the zero ID for none.
func contactOf(f *contact.Found, asked contact.ListID) api.Contact {
	out := api.Contact{
		ID: f.ID.String(), Email: f.To.String(), EmailNormalized: f.To.Key(), SMTPUTF8: f.To.NeedsUTF8(), Attributes: map[string]any{},
		Timezone: f.Timezone, Locale: f.Locale, Source: f.Source, CreatedAt: f.Created, UpdatedAt: f.Updated,
	}
	for _, a := range f.Attributes {
		out.Attributes[a.Name] = a.Value()
	}
	for i := range f.Memberships {
		sub := subscriptionOf(f.On[i], &f.Memberships[i])
		if f.On[i].ID == asked {
			out.Subscription = &sub
		} else {
			out.Subscriptions = append(out.Subscriptions, sub)
		}
	}
	out.ETag = etag(out)
	return out
}

func subscriptionOf(l *contact.List, m *contact.Membership) api.Subscription {
	out := api.Subscription{
		List: l.Name, Status: m.Status.String(), Topics: l.TopicStates(m), Source: m.Source, JoinedAt: m.Joined, ChangedAt: m.Changed,
	}
	if !m.Consent.IsZero() {
		c := api.Consent(m.Consent)
		out.Consent = &c
	}
	return out
}

// deliverable adds what the suppression list says.
func (s *Server) deliverable(r *request, account string, contacts ...*api.Contact) error {
	to := make([]mail.Path, 0, len(contacts))
	for _, c := range contacts {
		p, err := mail.ParsePath(c.Email)
		if err != nil {
			return fmt.Errorf("read contact %s: %w", c.ID, err)
		}
		to = append(to, p)
	}
	return s.deps.DB.View(r.Context(), func(tx kv.Tx) error {
		entries, err := s.deps.Suppression.CheckManyTx(tx, account, to, true)
		if err != nil {
			return err
		}
		for i, e := range entries {
			contacts[i].Deliverability = api.Deliverability{State: "ok"}
			if e != nil {
				contacts[i].Deliverability = api.Deliverability{State: "suppressed", Reason: e.Reason}
			}
		}
		return nil
	})
}

func (s *Server) listContacts(r *request) (api.Page[api.Contact], error) {
	var none api.Page[api.Contact]
	account, err := r.account()
	if err != nil {
		return none, err
	}
	status := contact.Absent
	switch text := r.URL.Query().Get("status"); text {
	case "":
	case "pending":
		status = contact.Pending
	case "subscribed", "unsubscribed":
		status = contact.ParseStatus(text)
	default:
		return none, badParameter("status", "status must be subscribed, unsubscribed or pending.")
	}
	return pageOf(s, r, account, func(r *request, l list) ([]api.Contact, string, error) {
		on, _, err := s.deps.Contacts.List(r.Context(), account, r.PathValue("id"))
		if err != nil {
			return nil, "", err
		}
		found, next, err := s.deps.Contacts.Members(r.Context(), on.ID, status, l.cursor, l.limit)
		if err != nil {
			return nil, "", err
		}
		data := make([]api.Contact, len(found))
		refs := make([]*api.Contact, len(found))
		for i := range found {
			data[i] = contactOf(&found[i], on.ID)
			data[i].ETag = "" // it is of all subscriptions
			refs[i] = &data[i]
		}
		return data, next, s.deliverable(r, account, refs...)
	})
}

func (s *Server) showContact(r *request) (api.Contact, error) {
	account, err := r.account()
	if err != nil {
		return api.Contact{}, err
	}
	f, err := s.deps.Contacts.Get(r.Context(), account, r.PathValue("id"))
	if err != nil {
		return api.Contact{}, err
	}
	return s.oneContact(r, account, f)
}

func (s *Server) oneContact(r *request, account string, f *contact.Found) (api.Contact, error) {
	out := contactOf(f, contact.ListID{})
	r.w.Header().Set("ETag", out.ETag)
	return out, s.deliverable(r, account, &out)
}

func (s *Server) putContact(r *request, in *api.PutContact) (api.Contact, error) {
	return s.changeContact(r, in, false)
}

func (s *Server) patchContact(r *request, in *api.PutContact) (api.Contact, error) {
	return s.changeContact(r, in, true)
}

func (s *Server) changeContact(r *request, in *api.PutContact, patch bool) (api.Contact, error) {
	account, err := r.account()
	if err != nil {
		return api.Contact{}, err
	}
	row, bad := rowOf(in)
	if bad != nil {
		return api.Contact{}, invalid("/"+bad.Column, bad.Code, sentence(bad.Detail))
	}
	if to, isEmail, err := contact.ParseRef(r.PathValue("id")); isEmail && err == nil && !patch {
		if _, err := contact.ParseAddress(to.String()); err != nil {
			return api.Contact{}, err
		}
	}
	f, fresh, err := s.deps.Contacts.Put(r.Context(), account, r.PathValue("id"), contact.Change{
		Row: row, List: in.List, Replace: !patch, MustExist: patch, AllowResubscribe: in.AllowResubscribe,
		Check: func(_ kv.Tx, f *contact.Found) error {
			if f == nil {
				return matches(r, "")
			}
			return matches(r, contactOf(f, contact.ListID{}).ETag)
		},
	}, "api:"+r.caller.name())
	if err != nil {
		return api.Contact{}, err
	}
	if fresh {
		r.status = http.StatusCreated
		r.w.Header().Set("Location", "/v1/contacts/"+f.ID.String())
	}
	return s.oneContact(r, account, f)
}

// rowOf reads one contact of a request.
func rowOf(in *api.PutContact) (contact.Row, *contact.RowError) {
	row := contact.Row{Status: contact.StatusOf(in.Status), Locale: in.Locale, Timezone: in.Timezone}
	if row.Status == contact.Invalid {
		return row, &contact.RowError{Column: "status", Value: fmt.Sprint(in.Status), Code: "invalid_subscription_status", Detail: "not a subscription status"}
	}
	if in.Email != "" {
		to, err := contact.ParseAddress(in.Email)
		if err != nil {
			return row, &contact.RowError{Column: "email", Value: in.Email, Code: "invalid_email", Detail: err.Error()}
		}
		row.To = to
	}
	var err error
	if row.Attributes, err = contact.AttributesOf(in.Attributes); err != nil {
		return row, &contact.RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
	}
	for name, status := range in.Topics {
		st := contact.ParseStatus(status)
		if st != contact.Subscribed && st != contact.Unsubscribed {
			return row, &contact.RowError{Column: "topics/" + name, Value: status, Code: "invalid_subscription_status", Detail: "not a subscription status"}
		}
		row.Topics = append(row.Topics, contact.TopicStatus{Name: name, Status: st})
	}
	if in.Consent != nil {
		row.Consent = contact.Consent(*in.Consent)
		if row.Consent.At.IsZero() || row.Consent.At.After(time.Now().Add(24*time.Hour)) {
			return row, &contact.RowError{Column: "consent/at", Code: "invalid_consent", Detail: "a proof of consent has its time, in the past"}
		}
	}
	return row, nil
}

func (s *Server) deleteContact(r *request) (api.ContactErased, error) {
	account, err := r.account()
	if err != nil {
		return api.ContactErased{}, err
	}
	erase := false
	switch r.URL.Query().Get("erase") {
	case "", "false":
	case "true":
		erase = true
	default:
		return api.ContactErased{}, badParameter("erase", "erase must be true or false.")
	}
	id, err := s.deps.Contacts.DeleteIf(r.Context(), account, r.PathValue("id"), erase, func(f *contact.Found) error {
		if f == nil {
			return matches(r, "")
		}
		return matches(r, contactOf(f, contact.ListID{}).ETag)
	})
	if err != nil {
		return api.ContactErased{}, err
	}
	out := api.ContactErased{Erased: erase}
	if id != (contact.ID{}) {
		out.ID = id.String()
	}
	return out, nil
}
