package admin

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// Sources does the work of the source calls: source.Service. "" as the account means any; also runs in the transaction
// that does the work. trusted callers may name any DSN.
type Sources interface {
	Create(ctx context.Context, account string, trusted bool, in *api.CreateSource, also func(kv.Tx, api.Source) error) (api.Source, error)
	Get(ctx context.Context, account, ref string) (api.Source, error)
	List(ctx context.Context, account, cursor string, limit int) ([]api.Source, string, error)
	Patch(ctx context.Context, account, ref string, trusted bool, etag string, in *api.PatchSource) (api.Source, error)
	Delete(ctx context.Context, account, ref, etag string) error
	Test(ctx context.Context, account, ref string) (api.SourceTest, error)
	Sync(ctx context.Context, account, ref string, full bool, also func(kv.Tx, api.SourceRun) error) (api.SourceRun, error)
	Runs(ctx context.Context, account, ref, cursor string, limit int) ([]api.SourceRun, string, error)
	OneRun(ctx context.Context, account, ref, run string) (api.SourceRun, error)
}

// sourceRoutes are the calls about sources.
func (s *Server) sourceRoutes() []route {
	const read, write = "contacts:read", "contacts:import"
	return []route{
		{http.MethodPost, "/v1/sources", write, "Create a source: a table of MySQL or PostgreSQL that feeds a list", nil, http.StatusCreated, smallBody, false, as[api.Source](takes(s.createSource))},
		{http.MethodGet, "/v1/sources", read, "List sources", []string{"account", "limit", "cursor"}, http.StatusOK, 0, false, lists(s, (*request).filter, s.listSources)},
		{http.MethodGet, "/v1/sources/{id}", read, "Show a source with its watermark and last run", nil, http.StatusOK, 0, false, gives(s.showSource)},
		{http.MethodPatch, "/v1/sources/{id}", write, "Change a source", nil, http.StatusOK, smallBody, false, takes(s.patchSource)},
		{http.MethodDelete, "/v1/sources/{id}", write, "Remove a source; its contacts stay", nil, http.StatusNoContent, 0, false, streams(s.deleteSource)},
		{http.MethodPost, "/v1/sources/{id}/test", write, "Connect and tell what a run would meet", nil, http.StatusOK, 0, false, gives(s.testSource)},
		{http.MethodPost, "/v1/sources/{id}/sync", write, "Ask for a run now", nil, http.StatusAccepted, smallBody, false, endpoint{func(r *request) (any, error) { return s.syncSource(r) }, reflect.TypeFor[api.SyncSource](), reflect.TypeFor[api.SourceRun]()}},
		{http.MethodGet, "/v1/sources/{id}/runs", read, "List runs of a source, newest first", []string{"limit", "cursor"}, http.StatusOK, 0, false, lists(s, (*request).own, s.listSourceRuns)},
		{http.MethodGet, "/v1/sources/{id}/runs/{run}", read, "Show a run; with wait_seconds, after it has ended", []string{"wait_seconds"}, http.StatusOK, 0, false, gives(s.showSourceRun)},
	}
}

func (s *Server) createSource(r *request, in *api.CreateSource) (any, error) {
	account, err := r.caller.account(in.Account)
	if err != nil {
		return nil, err
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.Source, error) {
		out, err := s.deps.Sources.Create(r.Context(), account, r.caller.full, in, func(tx kv.Tx, out api.Source) error {
			return o.recordTx(tx, r.status, out)
		})
		if err == nil {
			if o != nil {
				o.recorded = true
			}
			r.w.Header().Set("Location", "/v1/sources/"+out.ID)
			r.w.Header().Set("ETag", out.ETag)
		}
		return out, err
	})
}

func (s *Server) listSources(r *request, l list) ([]api.Source, string, error) {
	return s.deps.Sources.List(r.Context(), l.account, l.cursor, l.limit)
}

func (s *Server) showSource(r *request) (api.Source, error) {
	out, err := s.deps.Sources.Get(r.Context(), r.caller.own(), r.PathValue("id"))
	if err == nil {
		r.w.Header().Set("ETag", out.ETag)
	}
	return out, err
}

func (s *Server) patchSource(r *request, in *api.PatchSource) (api.Source, error) {
	out, err := s.deps.Sources.Patch(r.Context(), r.caller.own(), r.PathValue("id"), r.caller.full, expected(r), in)
	if err == nil {
		r.w.Header().Set("ETag", out.ETag)
	}
	return out, err
}

// expected is the ETag that a change is for, "" for any (RFC 9110 section 13.1.1).
func expected(r *request) string {
	if etag := r.Header.Get("If-Match"); etag != "*" {
		return etag
	}
	return ""
}

func (s *Server) deleteSource(r *request) error {
	return s.deps.Sources.Delete(r.Context(), r.caller.own(), r.PathValue("id"), expected(r))
}

func (s *Server) testSource(r *request) (api.SourceTest, error) {
	return s.deps.Sources.Test(r.Context(), r.caller.own(), r.PathValue("id"))
}

// syncSource takes an empty body as {}.
func (s *Server) syncSource(r *request) (any, error) {
	var in api.SyncSource
	if len(r.body) > 0 {
		if err := r.decode(&in); err != nil {
			return nil, err
		}
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.SourceRun, error) {
		out, err := s.deps.Sources.Sync(r.Context(), r.caller.own(), r.PathValue("id"), in.Full, func(tx kv.Tx, out api.SourceRun) error {
			return o.recordTx(tx, r.status, out)
		})
		if err == nil {
			if o != nil {
				o.recorded = true
			}
			r.w.Header().Set("Location", "/v1/sources/"+out.Source+"/runs/"+out.ID)
		}
		return out, err
	})
}

func (s *Server) listSourceRuns(r *request, l list) ([]api.SourceRun, string, error) {
	return s.deps.Sources.Runs(r.Context(), l.account, r.PathValue("id"), l.cursor, l.limit)
}

// maxRunWait bounds wait_seconds, below the deadline for answers.
const maxRunWait = 30 * time.Second

// showSourceRun answers at once, or when the run has ended or wait_seconds are over.
func (s *Server) showSourceRun(r *request) (api.SourceRun, error) {
	wait, err := waitSeconds(r, maxRunWait)
	if err != nil {
		return api.SourceRun{}, err
	}
	return awaitEnd(s, r, wait, func(ctx context.Context) (api.SourceRun, bool, error) {
		out, err := s.deps.Sources.OneRun(ctx, r.caller.own(), r.PathValue("id"), r.PathValue("run"))
		return out, out.FinishedAt != nil, err
	})
}
