package admin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
)

// importRoutes are the calls about imports of contacts.
func (s *Server) importRoutes() []route {
	const ok, accepted = http.StatusOK, http.StatusAccepted
	const scope, read = "contacts:import", "contacts:read"
	return []route{
		{
			http.MethodPost, "/v1/imports", scope, "Import contacts from CSV or JSON lines, or, with a JSON body, begin an import in chunks",
			[]string{"account", "list", "on_conflict", "max_errors", "dry_run"},
			accepted, smallBody, true, as[api.Import](gives(s.createImport)),
		},
		{http.MethodGet, "/v1/imports", read, "List imports, newest first", []string{"account", "limit", "cursor"}, ok, 0, false, lists(s, (*request).account, s.listImports)},
		{http.MethodGet, "/v1/imports/{id}", read, "Show how far an import has come; with wait_seconds, after it has ended", []string{"wait_seconds"}, ok, 0, false, gives(s.showImport)},
		{http.MethodPut, "/v1/imports/{id}/chunks/{n}", scope, "Upload one chunk; the same bytes again change nothing", nil, ok, 0, true, gives(s.uploadChunk)},
		{http.MethodPost, "/v1/imports/{id}/commit", scope, "End an import in chunks", nil, accepted, smallBody, false, takes(s.commitImport)},
		{
			http.MethodGet, "/v1/imports/{id}/errors", read, "List the rows that were rejected; Accept: text/csv to mend and send again",
			[]string{"limit", "cursor"},
			ok, 0, false, as[api.Page[api.ContactImportError]](gives(s.importErrors)),
		},
		{http.MethodDelete, "/v1/imports/{id}", scope, "Cancel an import, or forget one that has ended", nil, ok, 0, false, gives(s.deleteImport)},
	}
}

func importOf(i *contact.ImportInfo) api.Import {
	out := api.Import{
		ID: i.Name(), Account: i.Account, List: i.ListName, State: i.State, Reason: i.Reason, Format: i.Request.Format, DryRun: i.Request.DryRun,
		RowCounts: rowCounts(i.Rows, i.Stats), RoleAddresses: i.Roles, BytesRead: i.Bytes, Encoding: i.Encoding, ExpectedChunks: i.Request.ExpectedChunks,
		ErrorsTruncated: i.Kept < i.Rejected, StartedAt: i.Started, FinishedAt: i.Finished, ErrorsURL: "/v1/imports/" + i.Name() + "/errors",
	}
	if i.Chunked {
		out.ChunksReceived = i.Chunks
	}
	if i.Took > 0 {
		out.RowsPerSecond = int64(float64(i.Rows) / i.Took.Seconds())
	}
	return out
}

// createImport reads JSON as the beginning of an import in chunks, and everything else as the contacts themselves.
func (s *Server) createImport(r *request) (any, error) {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return s.uploadContacts(r)
	}
	if err := s.readJSON(r); err != nil {
		return nil, err
	}
	var in api.CreateImport
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := importQuery(r, &in); err != nil {
		return nil, err
	}
	account, err := accountOf(r, in.Account)
	if err != nil {
		return nil, err
	}
	r.status = http.StatusCreated
	return idempotent(s, r, campaignKeyLife, func(o *once) (api.Import, error) {
		info, _, err := s.deps.Contacts.CreateImport(r.Context(), account, &in, true, nil, func(tx kv.Tx, i *contact.Import) error {
			return o.recordTx(tx, http.StatusCreated, importOf(&contact.ImportInfo{Import: *i}))
		})
		if err != nil {
			return api.Import{}, err
		}
		o.done()
		r.w.Header().Set("Location", "/v1/imports/"+info.Name())
		return importOf(info), nil
	})
}

// importQuery reads what stands in the query beside an upload; a JSON body says it for itself.
func importQuery(r *request, in *api.CreateImport) error {
	q := r.URL.Query()
	for name, into := range map[string]*string{"list": &in.List, "on_conflict": &in.OnConflict} {
		if q.Has(name) {
			*into = q.Get(name)
		}
	}
	if text := q.Get("max_errors"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return badParameter("max_errors", "max_errors must be a number of rows, 0 for no end.")
		}
		in.MaxErrors = n
	}
	dry, err := dryRun(r)
	if q.Get("dry_run") != "" || dry {
		in.DryRun = dry
	}
	return err
}

// dryRun tells whether the caller only asks what would happen: ?dry_run=true, or the preference dry-run (RFC 7240) where the
// query does not say.
func dryRun(r *request) (bool, error) {
	if r.URL.Query().Get("dry_run") != "" {
		return boolParameter(r, "dry_run")
	}
	for _, value := range r.Header.Values("Prefer") {
		for preference := range strings.FieldsFuncSeq(value, func(c rune) bool { return c == ',' || c == ';' }) {
			if strings.EqualFold(strings.TrimSpace(preference), "dry-run") {
				return true, nil
			}
		}
	}
	return false, nil
}

// boolParameter reads a query parameter that is true or false; without it, it is false.
func boolParameter(r *request, name string) (bool, error) {
	switch r.URL.Query().Get(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, badParameter(name, name+" must be true or false.")
}

// uploadContacts streams the body into the list.
func (s *Server) uploadContacts(r *request) (any, error) {
	in := api.CreateImport{Format: formatOf(r)}
	if err := importQuery(r, &in); err != nil {
		return nil, err
	}
	if in.List == "" {
		return nil, badParameter("list", "The list is named in the query: ?list=customers.")
	}
	if err := s.importOptions(r, &in.Options); err != nil {
		return nil, err
	}
	account, err := r.account()
	if err != nil {
		return nil, err
	}
	body, err := s.importBody(r)
	if err != nil {
		return nil, err
	}
	name, err := idempotencyKey(r.Request)
	if err != nil {
		return nil, err
	}
	var key []byte
	if name != "" {
		key = contact.IdempotencyDigest(r.caller.name(), name)
	}
	info, fresh, err := s.deps.Contacts.CreateImport(r.Context(), account, &in, false, key, nil)
	if err != nil {
		return nil, err
	}
	r.w.Header().Set("Location", "/v1/imports/"+info.Name())
	if !fresh {
		return s.repeatedImport(r, info)
	}
	if info, err = s.deps.Contacts.Upload(r.Context(), info, body); err != nil {
		return nil, err
	}
	return importOf(info), nil
}

func (s *Server) repeatedImport(r *request, info *contact.ImportInfo) (any, error) {
	if info.State == contact.ImportRunning {
		r.w.Header().Set("Retry-After", "1")
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: api.CodeIdempotencyKeyInUse, Detail: "The first upload with this key is still under way.",
		}
	}
	r.w.Header().Set("Idempotent-Replayed", "true")
	return importOf(info), nil
}

func formatOf(r *request) string {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); strings.Contains(kind, "json") {
		return "jsonl"
	}
	return "csv"
}

func (s *Server) importOptions(r *request, into *api.ContactImportOptions) error {
	text := r.Header.Get(api.ImportOptionsHeader)
	if text == "" {
		return nil
	}
	if err := checkJSON([]byte(text)); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badParameter(api.ImportOptionsHeader, sentence(err.Error()))
	}
	return nil
}

// importBody is the body of an upload: plain, or packed by gzip or zstd.
func (s *Server) importBody(r *request) (contact.Body, error) {
	if err := packedBody(r); err != nil {
		return contact.Body{}, err
	}
	digest, err := contentDigest(r.Header.Values("Content-Digest"))
	if err != nil {
		return contact.Body{}, err
	}
	control := http.NewResponseController(r.w)
	return contact.Body{
		ContentType: r.Header.Get("Content-Type"), Digest: digest, Reader: s.upload(r),
		Alive: func() { _ = control.SetWriteDeadline(time.Now().Add(answerTimeout)) },
	}, nil
}

// contentDigest reads the SHA-256 of a Content-Digest (RFC 9530 section 2): "sha-256=:BASE64:", one of several perhaps.
func contentDigest(values []string) ([]byte, error) {
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			name, text, _ := strings.Cut(strings.TrimSpace(item), "=")
			if !strings.EqualFold(name, "sha-256") {
				continue
			}
			text, ok := strings.CutPrefix(text, ":")
			text, ok2 := strings.CutSuffix(text, ":")
			digest, err := base64.StdEncoding.DecodeString(text)
			if !ok || !ok2 || err != nil || len(digest) != 32 {
				return nil, badParameter("Content-Digest", "It is not like sha-256=:BASE64:.")
			}
			return digest, nil
		}
	}
	if len(values) > 0 {
		return nil, badParameter("Content-Digest", "It has no sha-256.")
	}
	return nil, nil
}

func (s *Server) listImports(r *request, l list) ([]api.Import, string, error) {
	found, next, err := s.deps.Contacts.Imports(r.Context(), l.account, l.cursor, l.limit)
	return each(found, importOf), next, err
}

// showImport answers at once, or when the import has ended or wait_seconds are over.
func (s *Server) showImport(r *request) (api.Import, error) {
	wait, err := waitSeconds(r, maxWait)
	if err != nil {
		return api.Import{}, err
	}
	return awaitEnd(s, r, wait, func(ctx context.Context) (api.Import, bool, error) {
		info, err := s.deps.Contacts.Import(ctx, r.caller.own(), r.PathValue("id"))
		if err != nil {
			return api.Import{}, false, err
		}
		return importOf(info), !info.Finished.IsZero(), nil
	})
}

func (s *Server) uploadChunk(r *request) (api.ImportChunk, error) {
	info, err := s.deps.Contacts.Import(r.Context(), r.caller.own(), r.PathValue("id"))
	if err != nil {
		return api.ImportChunk{}, err
	}
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 1 || n > contact.MaxChunks {
		return api.ImportChunk{}, badParameter("n", fmt.Sprintf("Chunks are numbered from 1 to %d.", contact.MaxChunks))
	}
	body, err := s.importBody(r)
	if err != nil {
		return api.ImportChunk{}, err
	}
	if f := formatOf(r); f != info.Request.Format {
		return api.ImportChunk{}, &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType, Detail: "The import is of the format " + info.Request.Format + ".",
		}
	}
	c, err := s.deps.Contacts.UploadChunk(r.Context(), info.Account, info.Name(), n, body)
	if err != nil {
		return api.ImportChunk{}, err
	}
	if c.Replayed {
		r.w.Header().Set("Idempotent-Replayed", "true")
	}
	return api.ImportChunk{Chunk: n, Rows: c.Rows, Accepted: c.Rows - c.Rejected, Rejected: c.Rejected}, nil
}

func (s *Server) commitImport(r *request, in *api.CommitImport) (api.Import, error) {
	if in.Chunks < 1 || in.Chunks > contact.MaxChunks {
		return api.Import{}, invalid("/chunks", api.CodeInvalidParameter, "The number of chunks is needed.")
	}
	info, err := s.deps.Contacts.CommitImport(r.Context(), r.caller.own(), r.PathValue("id"), in.Chunks)
	if err != nil {
		return api.Import{}, err
	}
	return importOf(info), nil
}

func (s *Server) deleteImport(r *request) (api.Import, error) {
	info, _, err := s.deps.Contacts.DeleteImport(r.Context(), r.caller.own(), r.PathValue("id"))
	if err != nil {
		return api.Import{}, err
	}
	return importOf(info), nil
}

func (s *Server) importErrors(r *request) (any, error) {
	if strings.Contains(r.Header.Get("Accept"), "text/csv") {
		return nil, s.downloadErrors(r)
	}
	return pageOf(s, r, r.caller.own(), func(r *request, l list) ([]api.ContactImportError, string, error) {
		rows, next, _, _, err := s.deps.Contacts.ImportErrors(r.Context(), l.account, r.PathValue("id"), l.cursor, l.limit)
		return each(rows, func(row contact.RejectedRow) api.ContactImportError {
			return api.ContactImportError{Chunk: row.Chunk, ImportError: row.ImportError}
		}), next, err
	})
}

// downloadErrors writes the rejected rows as they stood in the upload, with columns behind that say what is wrong. The
// import of the mended file drops these columns.
func (s *Server) downloadErrors(r *request) error {
	var out *csv.Writer
	for cursor, first := "", true; first || cursor != ""; first = false {
		rows, next, header, delim, err := s.deps.Contacts.ImportErrors(r.Context(), r.caller.own(), r.PathValue("id"), cursor, api.MaxLimit)
		if err != nil {
			if first {
				return err
			}
			return aborted(err)
		}
		if first {
			r.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
			r.w.Header().Set("Content-Disposition", `attachment; filename="rejected.csv"`)
			out = csv.NewWriter(download(r))
			_ = out.Write(append(slices.Clone(header), contact.ReportColumns()...)) // the error stays for Flush
		}
		for _, row := range rows {
			fields := contact.SplitRow(row.Raw, delim, len(header))
			whole := ""
			if fields == nil {
				fields, whole = make([]string, len(header)), row.Raw
			}
			_ = out.Write(append(fields, strconv.FormatInt(row.Line, 10), row.Column, row.Code, row.Detail, whole))
		}
		out.Flush()
		if err := out.Error(); err != nil {
			return aborted(err)
		}
		cursor = next
	}
	return nil
}
