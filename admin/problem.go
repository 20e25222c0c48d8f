package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"syscall"

	"relayd/campaign"
	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/source"
	"relayd/internal/suppression"
	"relayd/spool"
)

// problemTypes is the base of Problem.Type.
const problemTypes = "https://relayd.dev/problems/"

// errorTable is how sentinel errors are answered. The text of the error is shown where show is set: those texts are
// written for callers and hold no path and nothing of the store.
var errorTable = []struct {
	err    error
	status int
	code   string
	show   bool
}{
	{account.ErrNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{spool.ErrNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{campaign.ErrNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{campaign.ErrTemplateNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{campaign.ErrAssetNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{campaign.ErrTemplateExists, http.StatusConflict, api.CodeConflict, true},
	{campaign.ErrTooMany, http.StatusConflict, api.CodeConflict, true},
	{campaign.ErrAssetUsed, http.StatusConflict, api.CodeConflict, true},
	{campaign.ErrChanged, http.StatusPreconditionFailed, api.CodeETagMismatch, true},
	{source.ErrNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{source.ErrExists, http.StatusConflict, api.CodeConflict, true},
	{source.ErrTooMany, http.StatusConflict, api.CodeConflict, true},
	{source.ErrETag, http.StatusPreconditionFailed, api.CodeETagMismatch, true},
	{source.ErrForbidden, http.StatusForbidden, api.CodeForbiddenScope, true},
	{source.ErrBusy, http.StatusTooManyRequests, api.CodeRateLimited, true},
	{source.ErrBadCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{contact.ErrNotFound, http.StatusNotFound, api.CodeNotFound, false},
	{contact.ErrExists, http.StatusConflict, api.CodeConflict, true},
	{contact.ErrTooMany, http.StatusConflict, api.CodeConflict, true},
	{contact.ErrState, http.StatusConflict, api.CodeConflict, true},
	{contact.ErrChunk, http.StatusConflict, api.CodeConflict, true},
	{contact.ErrInProgress, http.StatusConflict, api.CodeImportInProgress, true},
	{contact.ErrDigest, http.StatusBadRequest, api.CodeDigestMismatch, true},
	{contact.ErrAttributes, http.StatusUnprocessableEntity, api.CodeInvalidParameter, true},
	{contact.ErrContentType, http.StatusUnsupportedMediaType, api.CodeUnsupportedMediaType, true},
	{contact.ErrBadCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{dkim.ErrNoKey, http.StatusNotFound, api.CodeNotFound, false},
	{mail.ErrBadID, http.StatusNotFound, api.CodeNotFound, false},
	{account.ErrExists, http.StatusConflict, api.CodeConflict, true},
	{account.ErrConfigured, http.StatusConflict, api.CodeConflict, true},
	{dkim.ErrConfigured, http.StatusConflict, api.CodeConflict, true},
	{dkim.ErrExists, http.StatusConflict, api.CodeConflict, false},
	{account.ErrTooMany, http.StatusConflict, api.CodeConflict, true},
	{account.ErrUnknownDomain, http.StatusUnprocessableEntity, api.CodeFromNotVerified, true},
	{account.ErrInvalid, http.StatusUnprocessableEntity, api.CodeInvalidParameter, true},
	{suppression.ErrBadEntry, http.StatusUnprocessableEntity, api.CodeInvalidParameter, true},
	{spool.ErrSelector, http.StatusBadRequest, api.CodeInvalidParameter, true},
	{spool.ErrAction, http.StatusBadRequest, api.CodeInvalidParameter, true},
	{spool.ErrCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{event.ErrBadCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{suppression.ErrBadCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{campaign.ErrBadCursor, http.StatusBadRequest, api.CodeCursorMismatch, false},
	{campaign.ErrContentType, http.StatusUnsupportedMediaType, api.CodeUnsupportedMediaType, true},
	{mail.ErrBadPath, http.StatusUnprocessableEntity, api.CodeRecipientInvalid, true},
	{mail.ErrBadHeader, http.StatusUnprocessableEntity, api.CodeInvalidParameter, true},
	{os.ErrDeadlineExceeded, http.StatusRequestTimeout, api.CodeTimeout, false},
	{syscall.ENOSPC, http.StatusInsufficientStorage, api.CodeStorageUnavailable, false},
	{kv.ErrClosed, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
	{spool.ErrDeposed, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
	{context.Canceled, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
	{syscall.EIO, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
	{fs.ErrPermission, http.StatusServiceUnavailable, api.CodeStorageUnavailable, false},
}

// problemOf says how an error is answered. What it does not know is an internal error, told without a detail: nothing
// of paths or of the store reaches a caller.
func problemOf(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*campaign.Invalid](err); ok {
		return &api.Problem{Status: http.StatusUnprocessableEntity, Code: e.Code, Detail: e.Detail, Errors: e.Errors}
	}
	if e, ok := errors.AsType[*source.Invalid](err); ok {
		return &api.Problem{Status: http.StatusUnprocessableEntity, Code: api.CodeInvalidParameter, Errors: e.Errors}
	}
	if e, ok := errors.AsType[*contact.InvalidError](err); ok {
		return &api.Problem{Status: http.StatusUnprocessableEntity, Code: e.Code, Detail: sentence(e.Detail), Errors: e.Errors}
	}
	if e, ok := errors.AsType[*campaign.StateError](err); ok {
		return &api.Problem{Status: http.StatusConflict, Code: api.CodeCampaignStateConflict, Detail: e.Error()}
	}
	if e, ok := errors.AsType[*mail.Error](err); ok {
		return replyProblem(e.Reply)
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	for _, row := range errorTable {
		if errors.Is(err, row.err) {
			p := &api.Problem{Status: row.status, Code: row.code}
			if row.show {
				p.Detail = sentence(err.Error())
			}
			return p
		}
	}
	return &api.Problem{Status: http.StatusInternalServerError, Code: api.CodeInternal}
}

// replyProblem answers what an SMTP client would get as a reply (RFC 3463).
func replyProblem(r mail.Reply) *api.Problem {
	p := &api.Problem{Status: http.StatusUnprocessableEntity, Code: "message_refused", Detail: sentence(r.Text)}
	switch st := r.Status; {
	case r.Temporary() && st.Subject == 7 && r.Code == 452: // a quota of account.Quota
		p.Status, p.Code = http.StatusTooManyRequests, api.CodeQuotaExceeded
	case r.Temporary() && st.Subject == 7:
		p.Status, p.Code = http.StatusTooManyRequests, api.CodeRateLimited
	case r.Temporary() && (r.Code == 452 || st.Subject == 3 && st.Detail == 1):
		p.Status, p.Code = http.StatusInsufficientStorage, api.CodeStorageUnavailable
	case r.Temporary():
		p.Status, p.Code = http.StatusServiceUnavailable, api.CodeStorageUnavailable
	case st.Subject == 3 && st.Detail == 4 || r.Code == 552:
		p.Status, p.Code = http.StatusRequestEntityTooLarge, api.CodeMessageTooLarge
	case st.Subject == 7:
		p.Code = api.CodeFromNotVerified
	case st.Subject == 1 && (st.Detail == 7 || st.Detail == 8):
		p.Code = api.CodeFromNotVerified
	case st.Subject == 1:
		p.Code = api.CodeRecipientInvalid
	}
	return p
}

// sentence makes the text of an error one: in upper case, with a full stop.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	if c := s[0]; c >= 'a' && c <= 'z' {
		s = string(c-'a'+'A') + s[1:]
	}
	if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, ")") {
		s += "."
	}
	return s
}

func notFound(what string) *api.Problem {
	return &api.Problem{Status: http.StatusNotFound, Code: api.CodeNotFound, Detail: "There is no such " + what + "."}
}

func tooLarge() *api.Problem {
	return &api.Problem{Status: http.StatusRequestEntityTooLarge, Code: api.CodeBodyTooLarge}
}

// invalid is a 422 about one field of the body.
func invalid(pointer, code, detail string) *api.Problem {
	return &api.Problem{
		Status: http.StatusUnprocessableEntity, Code: code, Detail: detail,
		Errors: []api.FieldError{{Pointer: pointer, Code: code, Detail: detail}},
	}
}

// badParameter is a 400 about one query parameter.
func badParameter(name, detail string) *api.Problem {
	return &api.Problem{
		Status: http.StatusBadRequest, Code: api.CodeInvalidParameter, Detail: detail,
		Errors: []api.FieldError{{Pointer: name, Code: api.CodeInvalidParameter, Detail: detail}},
	}
}

// problem answers err, and logs it where relayd is to blame.
func (s *Server) problem(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError && r.Context().Err() == nil {
		s.log.Error("request.failed", "session", infoOf(r).id, "reason", infoOf(r).route, "code", p.Status, "err", err)
	}
	s.writeProblem(w, r, p)
}

func (s *Server) writeProblem(w http.ResponseWriter, r *http.Request, p *api.Problem) {
	q := *p
	q.Type = problemTypes + strings.ReplaceAll(q.Code, "_", "-")
	if q.Title == "" {
		q.Title = titleOf(q.Code)
	}
	q.RequestID = infoOf(r).id
	b, err := json.Marshal(q)
	if err != nil {
		b = []byte(`{"code":"internal","status":500}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	switch q.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="relayd"`)
	case http.StatusServiceUnavailable, http.StatusInsufficientStorage, http.StatusTooManyRequests:
		h.Set("Retry-After", "30")
	case http.StatusRequestEntityTooLarge, http.StatusRequestTimeout:
		h.Set("Connection", "close")
	}
	w.WriteHeader(q.Status)
	_, _ = w.Write(append(b, '\n'))
}

// titleOf makes a code readable: "Invalid json".
func titleOf(code string) string {
	words := strings.ReplaceAll(code, "_", " ")
	return strings.TrimSuffix(sentence(words), ".")
}

// notFound answers what no route serves, with 405 where another method would be served.
func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	var allow []string
	if isCleanPath(r.URL.EscapedPath()) {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			other := &http.Request{Method: method, URL: r.URL, Host: r.Host, Header: http.Header{}}
			if _, pattern := s.mux.Handler(other); pattern != "" && pattern != "/" {
				allow = append(allow, method)
			}
		}
	}
	if len(allow) > 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		s.writeProblem(w, r, &api.Problem{Status: http.StatusMethodNotAllowed, Code: api.CodeMethodNotAllowed})
		return
	}
	s.writeProblem(w, r, &api.Problem{Status: http.StatusNotFound, Code: api.CodeNotFound})
}
