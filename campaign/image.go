package campaign

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"relayd/internal/api"
)

// Limits of images.
const (
	maxImages     = 50
	maxImageBytes = 10 << 20 // of all of a campaign
)

// picture is an image that the HTML refers to as cid:NAME or asset:NAME.
type picture struct {
	name        string
	contentID   string
	contentType string
	content     []byte
	url         string // shown from there instead of a part
	used        bool
}

type imageSet struct{ list []*picture }

// newImages checks the images of a template. scope is what makes content IDs differ between campaigns.
func newImages(t *api.CampaignTemplate, scope, host string, bad *Invalid) *imageSet {
	set := &imageSet{}
	if len(t.Images) > maxImages {
		bad.add("/template/images", api.CodeInvalidParameter, "more than %d images", maxImages)
		return set
	}
	asLink := false
	switch t.Options.Images {
	case "", "cid":
	case "link":
		asLink = true
	default:
		bad.add("/template/options/images", api.CodeInvalidParameter, `%q is not "cid" or "link"`, clip(t.Options.Images, 40))
	}
	size := 0
	for i, in := range t.Images {
		pointer := fmt.Sprintf("/template/images/%d", i)
		img := &picture{name: in.Name, contentID: strings.Trim(in.ContentID, "<>"), contentType: in.ContentType, url: in.URL}
		var err error
		if img.content, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(in.Content), "")); err != nil {
			bad.add(pointer+"/content", api.CodeInvalidParameter, "not base64: %s", err)
		}
		size += len(img.content)
		linked := asLink
		switch in.Mode {
		case "":
		case "cid", "link":
			linked = in.Mode == "link"
		default:
			bad.add(pointer+"/mode", api.CodeInvalidParameter, `%q is not "cid" or "link"`, clip(in.Mode, 40))
		}
		if img.name == "" {
			img.name = img.contentID
		}
		switch {
		case img.name == "" || len(img.name) > 100 || !isImageName(img.name):
			bad.add(pointer+"/name", api.CodeInvalidParameter, "a name of 1 to 100 letters, digits, '.', '_', '-' and '@' is needed")
		case set.named(img.name) != nil || img.contentID != "" && set.named(img.contentID) != nil:
			bad.add(pointer+"/name", api.CodeInvalidParameter, "%q is there twice", img.name)
		case img.contentID != "" && !isImageName(img.contentID):
			bad.add(pointer+"/content_id", api.CodeInvalidParameter, "letters, digits, '.', '_', '-' and '@' only")
		}
		if img.contentID == "" {
			img.contentID = img.name
		}
		if !strings.Contains(img.contentID, "@") {
			img.contentID += "." + scope + "@" + host
		}
		if img.url != "" {
			if u, err := url.Parse(img.url); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.ContainsAny(img.url, "\"'<> {}\r\n") {
				bad.add(pointer+"/url", api.CodeInvalidParameter, "not an https URL")
			}
		}
		switch {
		case linked && img.url == "":
			bad.add(pointer+"/url", "required", "an image that is linked to needs the url at which it is found; upload it as an asset to get one")
		case !linked && len(img.content) == 0 && img.url == "":
			bad.add(pointer+"/content", "required", "an image needs content or url")
		case !linked && len(img.content) > 0:
			img.url = ""
			img.contentType = checkImageType(img, pointer, bad)
		}
		set.list = append(set.list, img)
	}
	if size > maxImageBytes {
		bad.add("/template/images", api.CodeMessageTooLarge, "images of %d bytes in all, more than %d", size, maxImageBytes)
	}
	return set
}

func isImageName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && strings.IndexByte("._-@", c) < 0 {
			return false
		}
	}
	return s != ""
}

// checkImageType requires that the content is what it is said to be, and tells where nothing is said.
func checkImageType(img *picture, pointer string, bad *Invalid) string {
	is := ""
	switch b := img.content; {
	case bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")):
		is = "image/png"
	case bytes.HasPrefix(b, []byte("\xff\xd8\xff")):
		is = "image/jpeg"
	case bytes.HasPrefix(b, []byte("GIF87a")), bytes.HasPrefix(b, []byte("GIF89a")):
		is = "image/gif"
	case len(b) > 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP":
		is = "image/webp"
	}
	switch said := strings.ToLower(img.contentType); {
	case said == "image/jpg" && is == "image/jpeg", said == "":
		if is == "" {
			bad.add(pointer+"/content_type", "required", "the content is no PNG, JPEG, GIF or WebP: say what it is")
		}
	case is != "" && said != is:
		bad.add(pointer+"/content_type", api.CodeInvalidParameter, "said to be %s, but the content is %s", clip(said, 40), is)
	case !strings.HasPrefix(said, "image/") || !isImageName(said[len("image/"):]) || said == "image/svg+xml":
		bad.add(pointer+"/content_type", api.CodeInvalidParameter, "%q is not a type of image that mail programs show", clip(said, 40))
	default:
		is = said
	}
	return is
}

func (s *imageSet) named(name string) *picture {
	for _, img := range s.list {
		if img.name == name || img.contentID == name {
			return img
		}
	}
	return nil
}

// reference finds src="cid:logo.png", url(asset:logo.png) and the like.
var reference = regexp.MustCompile(`(?i)(["'(=]\s*)(cid|asset):([^"'()<>\s]*)`)

// dataURI finds images inside the HTML itself, which Gmail does not show.
var dataURI = regexp.MustCompile(`(?i)["'(=]\s*data:image/`)

// refer puts the content ID or the URL of each image in the place of its reference.
func (s *imageSet) refer(c *compiler, t token) (string, error) {
	if at := dataURI.FindStringIndex(t.text); at != nil {
		err := errorAt(c.part, c.src, t.at+at[0], "data: URIs are not shown by large mailbox providers: list the image under template.images")
		err.Code = "image_data_uri"
		return "", err
	}
	found := reference.FindAllStringSubmatchIndex(t.text, -1)
	if found == nil {
		return t.text, nil
	}
	var b strings.Builder
	last := 0
	for _, m := range found {
		name := t.text[m[6]:m[7]]
		img := s.named(name)
		if img == nil {
			err := errorAt(c.part, c.src, t.at+m[4], "no image is named %q", clip(name, 60))
			err.Code = "image_missing"
			names := make([]string, 0, len(s.list))
			for _, img := range s.list {
				names = append(names, img.name)
			}
			err.Nearest = nearest(name, names)
			return "", err
		}
		img.used = true
		b.WriteString(t.text[last:m[4]])
		if img.url != "" {
			b.WriteString(strings.ReplaceAll(img.url, "&", "&amp;"))
		} else {
			b.WriteString("cid:" + img.contentID)
		}
		last = m[7]
	}
	b.WriteString(t.text[last:])
	return b.String(), nil
}

// appendPart writes the image as a part of multipart/related.
func (img *picture) appendPart(b []byte) []byte {
	b = append(b, "Content-Type: "+img.contentType+"; name=\""+img.name+"\"\r\n"+
		"Content-Transfer-Encoding: base64\r\n"+
		"Content-ID: <"+img.contentID+">\r\n"+
		"Content-Disposition: inline; filename=\""+img.name+"\"\r\n\r\n"...)
	e := encoder{buf: b, enc: encodeBase64}
	e.bytes(string(img.content))
	e.finish()
	return append(e.buf, "\r\n"...)
}
