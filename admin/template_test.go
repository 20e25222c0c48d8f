package admin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/contact"
)

const receiptTemplate = `{"name":"receipt","kind":"transactional","subject":"Order {{order}}","html":"<p>{{total}}</p>"}`

func (h *harness) do(method, path, token, contentType string, body []byte, header ...string) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, bytes.NewReader(body))
	require.NoError(h.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := h.http.Do(req)
	require.NoError(h.t, err)
	defer res.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(res.Body)
	require.NoError(h.t, err)
	return answer{res.StatusCode, res.Header, b.String()}
}

func TestTemplatesOverHTTP(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	reader, writer := h.key("", "templates:read"), h.key("", "templates:read", "templates:write")
	require.Equal(t, http.StatusForbidden, h.post("/v1/templates", reader, receiptTemplate).status)
	a := h.post("/v1/templates", writer, receiptTemplate)
	require.Equal(t, http.StatusCreated, a.status, a.body)
	require.Equal(t, "/v1/templates/receipt", a.header.Get("Location"))
	tag := a.header.Get("ETag")
	require.Equal(t, `"1"`, tag)
	require.Equal(t, http.StatusConflict, h.post("/v1/templates", writer, receiptTemplate).status)
	a = h.post("/v1/templates", writer, strings.Replace(receiptTemplate, "</p>", "{{#if x}}", 1))
	p := a.problem(t)
	require.Equal(t, http.StatusUnprocessableEntity, a.status)
	require.Equal(t, api.CodeTemplateSyntax, p.Code)
	require.Equal(t, "/html", p.Errors[0].Pointer)

	patch := []byte(`{"subject":"Your order {{order}}"}`)
	a = h.do(http.MethodPatch, "/v1/templates/receipt", writer, "application/json", patch, "If-Match", `"9"`)
	require.Equal(t, http.StatusPreconditionFailed, a.status)
	require.Equal(t, api.CodeETagMismatch, a.problem(t).Code)
	require.Equal(t, http.StatusForbidden, h.do(http.MethodPatch, "/v1/templates/receipt", reader, "application/json", patch).status)
	a = h.do(http.MethodPatch, "/v1/templates/receipt", writer, "application/json", patch, "If-Match", tag)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, `"2"`, a.header.Get("ETag"))
	require.Equal(t, http.StatusOK, h.post("/v1/templates/receipt/publish", writer, `{"version":1}`).status)
	require.Equal(t, http.StatusNotFound, h.post("/v1/templates/receipt/publish", writer, `{"version":2}`).status)
	a = h.post("/v1/templates/receipt/render", reader, `{"data":{"order":12345678901234567890,"total":"<b>"}}`)
	require.Equal(t, http.StatusOK, a.status, a.body)
	var out api.RenderedTemplate
	require.NoError(t, json.Unmarshal([]byte(a.body), &out))
	require.Equal(t, "Your order 12345678901234567890", out.Subject)
	require.Equal(t, "<p>&lt;b&gt;</p>", out.HTML)
	require.Equal(t, http.StatusOK, h.post("/v1/templates/receipt/validate", reader, `{}`).status)

	require.NoError(t, h.contacts.CreateList(t.Context(), &contact.List{Account: "default", Name: "buyers"}, nil))
	book := h.key("", "contacts:write", "contacts:read", "templates:read")
	send[api.Contact](h, "PUT", "/v1/contacts/email:Kim@example.net", book, `{"list":"buyers","attributes":{"order":7,"total":"<i>"}}`, 201)
	seen := send[api.RenderedTemplate](h, "POST", "/v1/templates/receipt/render", book, `{"contact":"email:kim@example.net","data":{"order":8}}`, 200)
	require.Equal(t, []string{"Your order 8", "<p>&lt;i&gt;</p>", "Kim@example.net"}, []string{seen.Subject, seen.HTML, seen.Headers["To"]}, "what the request gives lies over the contact")
	for ref, code := range map[string]string{"email:nobody@example.net": "contact_not_found", "email:nobody": "invalid_parameter", "nobody": "contact_not_found"} {
		a = h.post("/v1/templates/receipt/render", book, `{"contact":"`+ref+`","data":{"order":8}}`)
		require.Equal(t, []any{422, "/contact", code}, []any{a.status, a.problem(t).Errors[0].Pointer, a.problem(t).Errors[0].Code}, a.body)
	}
	require.Equal(t, http.StatusForbidden, h.post("/v1/templates/receipt/render", reader, `{"contact":"email:kim@example.net"}`).status, "contacts:read")
	require.Equal(t, "/contact", h.post("/v1/templates/receipt/validate", book, `{"contact":"email:kim@example.net"}`).problem(t).Errors[0].Pointer)
	a = h.do(http.MethodGet, "/v1/templates/receipt/versions?limit=1", reader, "", nil)
	require.Contains(t, a.body, `"has_more":false`)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, "/v1/templates/receipt", h.key("other", "all"), "", nil).status, "another account")
	require.Equal(t, http.StatusBadRequest, h.do(http.MethodGet, "/v1/templates/receipt?version=x", reader, "", nil).status)
	require.Equal(t, http.StatusNoContent, h.do(http.MethodDelete, "/v1/templates/receipt", writer, "", nil).status)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, "/v1/templates/receipt", reader, "", nil).status)
}

func TestMessagesOfTemplates(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	require.Equal(t, http.StatusCreated, h.post("/v1/templates", token, receiptTemplate).status)
	send := func(more string) answer {
		return h.post("/v1/messages", token, `{"from":{"email":"shop@example.com","name":"Shop"},"to":"ann@example.net","template":{"name":"receipt"}`+more+`}`)
	}
	require.Contains(t, send(`,"data":{"order":1,"total":2}`).problem(t).Errors[0].Detail, "no published version")
	require.Equal(t, http.StatusOK, h.post("/v1/templates/receipt/publish", token, `{}`).status)
	a := send(`,"data":{"Order":1,"total":2}`)
	p := a.problem(t)
	require.Equal(t, http.StatusUnprocessableEntity, a.status)
	require.Equal(t, api.CodeTemplateVariable, p.Code)
	require.Equal(t, []api.FieldError{{Pointer: "/data/order", Code: "required", Detail: `used in subject:1:9; did you mean "Order"?`}}, p.Errors)
	require.Equal(t, http.StatusUnprocessableEntity, send(`,"data":{"order":1,"total":2},"text":"x"`).status)
	require.Equal(t, http.StatusUnprocessableEntity, send(`,"data":{"order":"1\r\nBcc: x@example.org","total":2}`).status)
	require.Equal(t, http.StatusUnprocessableEntity, h.post("/v1/messages", token, `{"from":"shop@example.com","to":"ann@example.net","text":"x","data":{}}`).status)
	a = send(`,"data":{"order":1,"total":"\"><script>{{order}}"}`)
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	var queued api.MessageQueued
	require.NoError(t, json.Unmarshal([]byte(a.body), &queued))
	header, body := h.stored(queued.ID)
	require.Contains(t, header, "Subject: Order 1\r\n")
	require.Contains(t, header, "<shop@example.com>\r\n")
	require.Contains(t, header, "DKIM-Signature:")
	require.Equal(t, 1, strings.Count(header, "\r\nMessage-ID:")+strings.Count(header, "\r\nMessage-Id:"))
	require.Contains(t, body, "&#34;&gt;&lt;script&gt;{{order}}")
}

func TestAssetsOverHTTP(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "templates:read", "templates:write")
	png, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	require.NoError(t, err)
	upload := func(field, name string, content []byte) answer {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		f, err := w.CreateFormFile(field, name)
		require.NoError(t, err)
		_, err = f.Write(content)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return h.do(http.MethodPost, "/v1/assets", token, w.FormDataContentType(), b.Bytes())
	}
	a := upload("file", "logo.png", png)
	require.Equal(t, http.StatusCreated, a.status, a.body)
	var made api.Asset
	require.NoError(t, json.Unmarshal([]byte(a.body), &made))
	require.Equal(t, "image/png", made.ContentType)
	require.Equal(t, http.StatusUnprocessableEntity, upload("other", "logo.png", png).status)
	require.Equal(t, http.StatusUnprocessableEntity, upload("file", "x.html", []byte("<script>alert(1)</script>")).status)
	require.Equal(t, http.StatusRequestEntityTooLarge, upload("file", "x.png", make([]byte, maxAssetBody+1)).status)
	require.Equal(t, http.StatusUnprocessableEntity, h.do(http.MethodPost, "/v1/assets", token, "multipart/form-data; boundary=x", []byte("--y")).status)
	require.Equal(t, http.StatusBadRequest, h.do(http.MethodPost, "/v1/assets", token, "multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=file\r\n\r\nhalf")).status)
	require.Equal(t, http.StatusUnsupportedMediaType, h.do(http.MethodPost, "/v1/assets", token, "text/plain", png).status)
	require.Equal(t, http.StatusCreated, h.do(http.MethodPost, "/v1/assets?name=b.png", token, "image/png", append(png, 1)).status)
	require.Equal(t, http.StatusForbidden, h.do(http.MethodPost, "/v1/assets?name=b.png", h.key("", "templates:read"), "image/png", png).status)

	path, ok := strings.CutPrefix(made.URL, "https://u.example")
	require.True(t, ok)
	got := h.do(http.MethodGet, path, "", "", nil) // without a key
	require.Equal(t, http.StatusOK, got.status)
	require.Equal(t, string(png), got.body)
	for name, value := range map[string]string{
		"Content-Type": "image/png", "X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=31536000, immutable",
		"Content-Security-Policy": "default-src 'none'; sandbox", "ETag": `"` + made.SHA256 + `"`,
	} {
		require.Equal(t, value, got.header.Get(name), name)
	}
	require.Equal(t, http.StatusNotModified, h.do(http.MethodGet, path, "", "", nil, "If-None-Match", `"`+made.SHA256+`"`).status)
	require.Equal(t, http.StatusOK, h.do(http.MethodHead, path, "", "", nil).status)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, strings.Replace(path, "/a/", "/a/0", 1), "", "", nil).status)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, path+"x", "", "", nil).status)
	require.Equal(t, http.StatusOK, h.do(http.MethodGet, "/v1/assets/"+made.ID, token, "", nil).status)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, "/v1/assets/"+made.ID, h.key("other", "all"), "", nil).status)
	require.Equal(t, http.StatusBadRequest, h.do(http.MethodDelete, "/v1/assets/"+made.ID+"?force=x", token, "", nil).status)
	require.Equal(t, http.StatusNoContent, h.do(http.MethodDelete, "/v1/assets/"+made.ID, token, "", nil).status)
	require.Equal(t, http.StatusNotFound, h.do(http.MethodGet, path, "", "", nil).status)
}
