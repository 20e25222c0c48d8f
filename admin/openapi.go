package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"relayd/internal/api"
)

// openAPI describes the table of routes as OpenAPI 3.1. huma makes the schemas from the Go types and does nothing else
// here: bodies are read by json.go and upload.go.
func openAPI(routes []route, version string) ([]byte, error) {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	problem := schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info:    &huma.Info{Title: "relayd", Version: version, Description: "Self-hosted SMTP relay. Errors are RFC 9457 problems."},
		Paths:   map[string]*huma.PathItem{},
		Components: &huma.Components{
			Schemas:         schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer"}},
		},
	}
	for i := range routes {
		rt := &routes[i]
		op := &huma.Operation{
			OperationID: operationID(rt),
			Summary:     rt.summary,
			Security:    []map[string][]string{{"key": scopesOf(rt)}},
			Responses: map[string]*huma.Response{
				strconv.Itoa(rt.status): {Description: http.StatusText(rt.status), Content: contentOf(schemas, rt)},
				"default":               {Description: "Problem", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: problem}}},
			},
			Parameters: parametersOf(rt),
		}
		switch {
		case rt.call.in != nil:
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
				"application/json": {Schema: schemas.Schema(rt.call.in, true, "")},
			}}
		case rt.upload && rt.path == "/v1/assets":
			file := &huma.Schema{Type: "object", Properties: map[string]*huma.Schema{"file": {Type: "string", Format: "binary"}}}
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
				"multipart/form-data": {Schema: file}, "image/*": {Schema: &huma.Schema{Type: "string", Format: "binary"}},
			}}
		case rt.upload:
			stream := &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
				"text/csv": stream, "application/x-ndjson": stream,
			}}
		}
		item := doc.Paths[rt.path]
		if item == nil {
			item = &huma.PathItem{}
			doc.Paths[rt.path] = item
		}
		switch rt.method {
		case http.MethodGet:
			item.Get = op
		case http.MethodPost:
			item.Post = op
		case http.MethodPut:
			item.Put = op
		case http.MethodPatch:
			item.Patch = op
		case http.MethodDelete:
			item.Delete = op
		}
	}
	mailboxSchemas(schemas)
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("make OpenAPI document: %w", err)
	}
	return append(b, '\n'), nil
}

// mailboxSchemas adds the short form of an address, a plain string, which the Go types do not show.
func mailboxSchemas(schemas huma.Registry) {
	box := schemas.Map()["Mailbox"]
	if box == nil {
		return
	}
	short := &huma.Schema{Type: "string", Format: "email"}
	schemas.Map()["Mailbox"] = &huma.Schema{OneOf: []*huma.Schema{short, box}}
	if send := schemas.Map()["SendMessage"]; send != nil {
		one := &huma.Schema{Ref: "#/components/schemas/Mailbox"}
		send.Properties["to"] = &huma.Schema{OneOf: []*huma.Schema{one, {Type: "array", Items: one}}}
	}
}

func contentOf(schemas huma.Registry, rt *route) map[string]*huma.MediaType {
	switch {
	case rt.call.out != nil:
		return map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(rt.call.out, true, "")}}
	case rt.status == http.StatusNoContent:
		return nil
	}
	stream := &huma.MediaType{Schema: &huma.Schema{Type: "string"}}
	return map[string]*huma.MediaType{"text/csv": stream, "application/x-ndjson": stream}
}

func scopesOf(rt *route) []string {
	if rt.scope == "" {
		return []string{}
	}
	return []string{rt.scope}
}

// operationID is getCampaignsRecipients for GET /v1/campaigns/{id}/recipients.
func operationID(rt *route) string {
	var id strings.Builder
	id.WriteString(strings.ToLower(rt.method))
	for part := range strings.SplitSeq(strings.TrimPrefix(rt.path, "/v1/"), "/") {
		part = strings.Trim(part, "{}")
		id.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return id.String()
}

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

func parametersOf(rt *route) []*huma.Param {
	var params []*huma.Param
	for _, m := range pathParameter.FindAllStringSubmatch(rt.path, -1) {
		params = append(params, &huma.Param{Name: m[1], In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
	}
	for _, name := range rt.query {
		schema := &huma.Schema{Type: "string"}
		switch name {
		case "limit":
			least, most := 1.0, float64(api.MaxLimit)
			schema = &huma.Schema{Type: "integer", Minimum: &least, Maximum: &most, Default: api.DefaultLimit}
		case "queues", "sites", "older_than_seconds":
			schema = &huma.Schema{Type: "integer"}
		case "since", "until":
			schema = &huma.Schema{Type: "string", Format: "date-time"}
		}
		params = append(params, &huma.Param{Name: name, In: "query", Schema: schema})
	}
	if rt.path == "/v1/campaigns" && rt.method == http.MethodPost || rt.path == "/v1/messages" ||
		rt.method == http.MethodPost && (rt.path == "/v1/sources" || rt.path == "/v1/sources/{id}/sync") {
		params = append(params, &huma.Param{
			Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: "string"},
			Description: "Makes the call safe to repeat.",
		})
	}
	if rt.upload && strings.HasPrefix(rt.path, "/v1/campaigns") {
		params = append(params, &huma.Param{
			Name: api.ImportOptionsHeader, In: "header", Schema: &huma.Schema{Type: "string"}, Description: "ImportOptions as JSON.",
		})
	}
	return params
}
