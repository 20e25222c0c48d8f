package admin

import (
	"fmt"
	"net/http"
	"strings"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// This file writes many contacts in one call.

// errAtomic undoes a batch of which one item is wrong.
func errAtomic(results []api.ContactResult) error {
	p := &api.Problem{Status: http.StatusUnprocessableEntity, Code: api.CodeInvalidParameter}
	for _, res := range results {
		if res.Error != nil && len(p.Errors) < 100 {
			p.Errors = append(p.Errors, *res.Error)
		}
	}
	p.Detail = fmt.Sprintf("%d of %d contacts are wrong: nothing was written.", len(p.Errors), len(results))
	return p
}

func (s *Server) batchContacts(r *request, in *api.ContactBatch) (any, error) {
	account, err := accountOf(r, in.Account)
	if err != nil {
		return nil, err
	}
	switch {
	case in.Mode != "" && in.Mode != "atomic" && in.Mode != "partial":
		return nil, invalid("/mode", api.CodeInvalidParameter, `Mode is "atomic" or "partial".`)
	case len(in.Contacts) == 0 || len(in.Contacts) > maxBatch:
		return nil, invalid("/contacts", api.CodeInvalidParameter, fmt.Sprintf("A batch has 1 to %d contacts.", maxBatch))
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.ContactBatchResult, error) {
		var out api.ContactBatchResult
		err := s.deps.DB.Update(r.Context(), func(tx kv.Tx) (err error) {
			if out, err = s.batchTx(tx, account, in, "api:"+r.caller.name()); err != nil {
				return err
			}
			return o.recordTx(tx, http.StatusOK, out)
		})
		if err != nil {
			return out, err
		}
		o.done()
		return out, nil
	})
}

func (s *Server) batchTx(tx kv.Tx, account string, in *api.ContactBatch, source string) (api.ContactBatchResult, error) {
	out := api.ContactBatchResult{Results: make([]api.ContactResult, len(in.Contacts))}
	l, err := s.deps.Contacts.ListTx(tx, account, in.List)
	if err != nil {
		return out, invalid("/list", api.CodeNotFound, "There is no such list.")
	}
	var rows []contact.Row
	var index []int
	wrong := func(i int, bad *contact.RowError) {
		out.Results[i].State = "rejected"
		out.Results[i].Error = &api.FieldError{
			Pointer: fmt.Sprintf("/contacts/%d/%s", i, strings.ReplaceAll(bad.Column, ".", "/")), Code: bad.Code, Detail: sentence(bad.Detail),
		}
	}
	for i := range in.Contacts {
		item := &in.Contacts[i]
		out.Results[i] = api.ContactResult{Index: i, Email: mail.CleanText(item.Email, 320)}
		row, bad := rowOf(item)
		switch {
		case bad == nil && row.To.IsNull():
			bad = &contact.RowError{Column: "email", Code: "invalid_email", Detail: "an address is needed"}
		case bad == nil && item.List != "" && item.List != in.List:
			bad = &contact.RowError{Column: "list", Code: api.CodeInvalidParameter, Detail: "the list is named beside the contacts"}
		}
		if bad != nil {
			wrong(i, bad)
			continue
		}
		rows, index = append(rows, row), append(index, i)
	}
	done, err := s.deps.Contacts.ApplyTx(tx, l.ID, rows, contact.ApplyOptions{Source: source, AllowResubscribe: in.AllowResubscribe})
	if err != nil {
		return out, err
	}
	for k, i := range index {
		if out.Results[i].State = done.Verdicts[k].String(); done.Errors[k] != nil {
			wrong(i, done.Errors[k])
		}
	}
	done.Rejected += int64(len(in.Contacts) - len(rows))
	if done.Rejected > 0 && in.Mode != "partial" {
		return out, errAtomic(out.Results)
	}
	out.RowCounts = rowCounts(int64(len(in.Contacts)), done.Stats)
	return out, nil
}

func rowCounts(rows int64, st contact.Stats) api.RowCounts {
	return api.RowCounts{
		RowsRead: rows, Created: st.Created, Updated: st.Updated, Unchanged: st.Unchanged, SkippedUnsubscribed: st.SkippedUnsubscribed,
		SkippedErased: st.SkippedErased, SkippedExisting: st.SkippedExisting, Rejected: st.Rejected, Duplicates: st.Duplicates,
	}
}
