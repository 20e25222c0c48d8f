package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"

	"relayd/internal/api"
)

// route is one call of the API.
type route struct {
	method  string
	path    string
	scope   string   // that a key needs; "" for every valid key
	summary string   // for the OpenAPI document
	query   []string // known query parameters
	status  int      // of a good answer
	limit   int64    // bytes of a JSON body
	upload  bool     // the body is a stream
	call    endpoint
}

func (r route) pattern() string { return r.method + " " + r.path }

// endpoint is a handler and the types that it takes and gives; nil for none.
type endpoint struct {
	run     func(*request) (any, error)
	in, out reflect.Type
}

// takes is an endpoint with a JSON body.
func takes[In, Out any](f func(*request, *In) (Out, error)) endpoint {
	return endpoint{func(r *request) (any, error) {
		var in In
		if err := r.decode(&in); err != nil {
			return nil, err
		}
		return f(r, &in)
	}, reflect.TypeFor[In](), reflect.TypeFor[Out]()}
}

// gives is an endpoint without a body, or with one that it reads itself.
func gives[Out any](f func(*request) (Out, error)) endpoint {
	return endpoint{func(r *request) (any, error) { return f(r) }, nil, reflect.TypeFor[Out]()}
}

// as says what an endpoint gives whose handler may also repeat an older answer.
func as[Out any](e endpoint) endpoint {
	e.out = reflect.TypeFor[Out]()
	return e
}

// streams is an endpoint that writes its own answer, or none.
func streams(f func(*request) error) endpoint {
	return endpoint{func(r *request) (any, error) { return nil, f(r) }, nil, nil}
}

// Limits of JSON bodies in bytes.
const (
	smallBody    = 1 << 20
	campaignBody = 32 << 20 // a template with its images, and recipients
)

// table is every call of the API. What it says is what holds: nothing else checks scopes, parameters or limits, and the
// OpenAPI document is made from it.
func (s *Server) table() []route {
	get := func(path, scope, summary string, call endpoint, query ...string) route {
		return route{http.MethodGet, path, scope, summary, query, http.StatusOK, 0, false, call}
	}
	post := func(path, scope, summary string, status int, call endpoint, query ...string) route {
		return route{http.MethodPost, path, scope, summary, query, status, smallBody, false, call}
	}
	del := func(path, scope, summary string, status int, call endpoint, query ...string) route {
		return route{http.MethodDelete, path, scope, summary, query, status, 0, false, call}
	}
	patch := func(path, scope, summary string, call endpoint, query ...string) route {
		return route{http.MethodPatch, path, scope, summary, query, http.StatusOK, smallBody, false, call}
	}
	put := func(path, scope, summary string, call endpoint, query ...string) route {
		return route{http.MethodPut, path, scope, summary, query, http.StatusOK, smallBody, false, call}
	}
	large := func(r route, limit int64) route { r.limit = limit; return r }
	upload := func(r route) route { r.upload = true; return r }
	const ok, created, accepted, empty = http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent
	return slices.Concat(s.sourceRoutes(), s.templateRoutes(), s.assetRoutes(), s.contactRoutes(), s.importRoutes(), s.siteRoutes(), []route{
		get("/v1/version", "", "Version of relayd", gives(s.version)),

		large(post("/v1/campaigns", "campaigns:write", "Create a campaign; with start, send it (campaigns:send)", created,
			as[api.Campaign](takes(s.createCampaign))), campaignBody),
		get("/v1/campaigns", "campaigns:read", "List campaigns, newest first", as[api.CampaignList](lists(s, (*request).filter, s.listCampaigns)), "account", "limit", "cursor"),
		get("/v1/campaigns/{id}", "campaigns:read", "Show a campaign", gives(s.showCampaign)),
		upload(post("/v1/campaigns/{id}/recipients", "campaigns:write", "Upload recipients as CSV or JSON lines", ok,
			gives(s.uploadRecipients))),
		get("/v1/campaigns/{id}/recipients", "campaigns:read", "List what became of each recipient", as[api.RecipientList](lists(s, (*request).own, s.listRecipients)),
			"state", "limit", "cursor"),
		large(patch("/v1/campaigns/{id}", "campaigns:write", "Change a draft, or how a campaign is sent and guarded; needs If-Match",
			takes(s.patchCampaign)), campaignBody),
		del("/v1/campaigns/{id}", "campaigns:write", "Forget a draft, or a campaign that has ended", empty, streams(s.deleteCampaign)),
		get("/v1/campaigns/{id}/progress", "campaigns:read", "Count recipients by state; with wait_seconds, when they have changed",
			as[api.Progress](gives(s.progress)), "wait_seconds"),
		get("/v1/campaigns/{id}/progress/stream", "campaigns:read", "Progress as server-sent events", streams(s.streamProgress)),
		get("/v1/campaigns/{id}/report", "campaigns:read", "How it went, and why not better; as CSV, one row for each recipient",
			as[api.CampaignReport](gives(s.campaignReport)), "format"),
		post("/v1/campaigns/{id}/validate", "campaigns:write", "Tell what would become of it, without sending", ok, gives(s.validateCampaign)),
		post("/v1/campaigns/{id}/preview", "campaigns:write", "Make one recipient's message", ok, takes(s.previewCampaign)),
		post("/v1/campaigns/{id}/test", "campaigns:send", "Send a test message", accepted, as[api.TestSent](takes(s.testCampaign))),
		post("/v1/campaigns/{id}/schedule", "campaigns:send", "Start at a time, or at a time of day where each recipient is", ok,
			takes(s.scheduleCampaign)),
		post("/v1/campaigns/{id}/unschedule", "campaigns:send", "Make it a draft again", ok, gives(s.unscheduleCampaign)),
		post("/v1/campaigns/{id}/retry-failed", "campaigns:send", "Send again to those whom we failed", accepted, gives(s.retryFailed)),
		post("/v1/campaigns/{id}/clone", "campaigns:write", "Make a draft of the same content", created,
			as[api.Campaign](gives(s.cloneCampaign))),
		get("/v1/compliance", "campaigns:read", "What the law asks of the account's campaigns", gives(s.showCompliance), "account"),
		put("/v1/compliance", "campaigns:write", "Set what the law asks of the account's campaigns", takes(s.setCompliance), "account"),
		post("/v1/campaigns/{id}/start", "campaigns:send", "Begin to send; with dry_run, what validate tells", accepted,
			as[api.Campaign](gives(s.startCampaign)), "dry_run"),
		post("/v1/campaigns/{id}/pause", "campaigns:send", "Stop new attempts", ok, gives(s.pauseCampaign)),
		post("/v1/campaigns/{id}/resume", "campaigns:send", "Go on", ok, gives(s.resumeCampaign)),
		post("/v1/campaigns/{id}/cancel", "campaigns:send", "End it: what is not delivered is cancelled", accepted,
			gives(s.cancelCampaign)),

		large(post("/v1/messages", "messages:send", "Send one message", accepted, as[api.MessageQueued](takes(s.sendMessage))), s.messageBody()),

		get("/v1/queue", "queue:read", "List envelopes that wait", lists(s, (*request).own, s.listQueue), "query", "account", "message", "stream",
			"campaign", "domain", "from", "to", "state", "class", "reply", "site", "older_than_seconds", "limit", "cursor"),
		get("/v1/queue/stats", "queue:read", "Count envelopes", gives(s.queueStats), "queues", "sites"),
		get("/v1/queue/{id}", "queue:read", "Show a message with its envelopes", gives(s.showQueue)),
		get("/v1/queue/{id}/why", "queue:read", "Say what the envelopes of a message wait for", gives(s.whyQueue)),
		get("/v1/history", "queue:read", "List final outcomes, those settled last first", lists(s, (*request).own, s.listHistory), "to", "message_id",
			"id", "account", "limit", "cursor"),
		post("/v1/queue/actions", "queue:write", "Hold, release, retry or fail envelopes", ok, takes(s.queueAction)),

		get("/v1/suppressions", "suppressions:read", "List suppressed addresses", lists(s, (*request).account, s.listSuppressions),
			"account", "limit", "cursor"),
		post("/v1/suppressions", "suppressions:write", "Suppress an address", created, takes(s.addSuppression)),
		upload(post("/v1/suppressions/import", "suppressions:write", "Upload suppressions as CSV or JSON lines", ok,
			gives(s.importSuppressions), "account")),
		get("/v1/suppressions/export", "suppressions:read", "Download all suppressions as CSV or JSON lines",
			streams(s.exportSuppressions), "account", "format"),
		get("/v1/suppressions/{email}", "suppressions:read", "Check an address", gives(s.checkSuppression), "account"),
		del("/v1/suppressions/{email}", "suppressions:delete", "Remove an address", ok, gives(s.removeSuppression),
			"account", "scope"),

		get("/v1/credentials", "credentials:read", "List SMTP credentials", lists(s, (*request).filter, s.listCredentials), "account", "limit", "cursor"),
		post("/v1/credentials", "credentials:write", "Create an SMTP credential; its password is shown once", created,
			takes(s.createCredential)),
		del("/v1/credentials/{username}", "credentials:write", "Revoke an SMTP credential", empty, streams(s.revokeCredential)),

		get("/v1/keys", "keys:read", "List API keys", lists(s, (*request).filter, s.listKeys), "account", "limit", "cursor"),
		post("/v1/keys", "keys:write", "Create an API key; it is shown once", created, takes(s.createKey)),
		del("/v1/keys/{id}", "keys:write", "Revoke an API key", empty, streams(s.revokeKey)),

		get("/v1/domains", "domains:read", "List sender domains", lists(s, (*request).filter, s.listDomains), "account", "limit", "cursor"),
		post("/v1/domains", "domains:write", "Add a sender domain and make its DKIM keys", created, takes(s.createDomain)),
		get("/v1/domains/{name}", "domains:read", "Show a sender domain", gives(s.showDomain)),
		del("/v1/domains/{name}", "domains:write", "Remove a sender domain; its keys stay on disk", empty,
			streams(s.removeDomain)),
		post("/v1/domains/{name}/verify", "domains:read", "Compare what DNS publishes with what is needed", ok,
			gives(s.verifyDomain)),
		post("/v1/domains/{name}/dkim/rotate", "domains:write", "Make new, pending DKIM keys", ok, gives(s.rotateKeys)),
		post("/v1/domains/{name}/dkim/activate", "domains:write", "Sign with a key from now on", ok, takes(s.activateKey)),

		get("/v1/events", "events:read", "Read the event log, oldest first", gives(s.listEvents), "account", "type", "envelope",
			"campaign", "since", "until", "limit", "cursor"),
	})
}

// newMux registers the table and what is public.
func (s *Server) newMux() *http.ServeMux {
	mux := http.NewServeMux()
	for i := range s.routes {
		rt := &s.routes[i]
		mux.HandleFunc(rt.pattern(), func(w http.ResponseWriter, r *http.Request) { s.serve(rt, w, r) })
	}
	for _, p := range s.public() {
		mux.HandleFunc(p.pattern, func(w http.ResponseWriter, r *http.Request) {
			infoOf(r).route = p.pattern
			p.serve(w, r)
		})
	}
	mux.HandleFunc("/", s.notFound)
	return mux
}

// serve takes one call of the API through its steps.
func (s *Server) serve(rt *route, w http.ResponseWriter, r *http.Request) {
	infoOf(r).route = rt.pattern()
	rq := &request{Request: r, w: w, id: infoOf(r).id, route: rt, status: rt.status}
	out, err := s.call(rq)
	if err != nil {
		s.problem(w, r, err)
		return
	}
	if out != nil {
		s.answer(rq, out)
	} else if rt.status == http.StatusNoContent {
		w.WriteHeader(rt.status)
	}
}

func (s *Server) call(r *request) (any, error) {
	var err error
	if r.caller, err = s.authenticate(r.Request); err != nil {
		return nil, err
	}
	if err := r.caller.authorize(r.route.scope); err != nil {
		return nil, err
	}
	for name, values := range r.URL.Query() {
		if !slices.Contains(r.route.query, name) {
			return nil, badParameter(name, "This parameter is not known.")
		}
		if len(values) > 1 {
			return nil, badParameter(name, "This parameter stands twice.")
		}
	}
	if r.route.limit > 0 && !r.route.upload {
		done, err := s.reserveBody(r)
		if err != nil {
			return nil, err
		}
		defer done()
		if err := s.readJSON(r); err != nil {
			return nil, err
		}
	}
	return r.route.call.run(r)
}

// reserveBody lets only so many large bodies be in memory at a time.
func (s *Server) reserveBody(r *request) (func(), error) {
	if r.route.limit <= smallBody || r.ContentLength >= 0 && r.ContentLength <= smallBody {
		return func() {}, nil
	}
	select {
	case s.bodies <- struct{}{}:
		return func() { <-s.bodies }, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (s *Server) answer(r *request, out any) {
	b, err := json.Marshal(out)
	if err != nil {
		s.problem(r.w, r.Request, err)
		return
	}
	r.w.Header().Set("Content-Type", "application/json")
	r.w.WriteHeader(r.status)
	_, _ = r.w.Write(append(b, '\n'))
}

func (s *Server) version(*request) (api.Version, error) { return s.deps.Version, nil }
