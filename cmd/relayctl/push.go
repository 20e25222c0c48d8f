package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

// templateFlags are what push and validate take a source from.
type templateFlags struct {
	file, kind, subject, preheader, html, text, mjml, images string
	samples                                                  string
	noInline, footer                                         bool
}

func (f *templateFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.file, "file", "", "JSON `file` as POST /v1/templates takes it, - for standard input; flags win")
	fl.StringVar(&f.kind, "kind", "", "`kind`: broadcast (default), transactional or partial")
	fl.StringVar(&f.subject, "subject", "", "`subject`, may hold {{variables}}")
	fl.StringVar(&f.preheader, "preheader", "", "`text` that mail programs show beside the subject")
	fl.StringVar(&f.html, "html", "", "HTML `file`")
	fl.StringVar(&f.mjml, "mjml", "", "MJML `file`, made HTML by the command mjml on this machine")
	fl.StringVar(&f.text, "text", "", "`file` of the text part; default: made from the HTML")
	fl.StringVar(&f.images, "images", "", "how pictures are shown: `cid`, as parts of the mail (default), or link")
	fl.StringVar(&f.samples, "samples", "", "JSON `file` with a list of samples")
	fl.BoolVar(&f.noInline, "no-inline-css", false, "leave the rules of <style> where they are")
	fl.BoolVar(&f.footer, "auto-footer", false, "add an unsubscribe line where the template has none")
}

// source reads what the flags name. given tells which fields they set.
func (f *templateFlags) source(ctx context.Context, a *app, cmd *cobra.Command, name string) (in api.CreateTemplate, err error) {
	if f.file != "" {
		if err := a.readJSONFile(f.file, &in); err != nil {
			return in, err
		}
	}
	if in.Name == "" || name != "" {
		in.Name = name
	}
	changed := cmd.Flags().Changed
	for flag, to := range map[string]struct {
		dst *string
		src string
	}{
		"kind": {&in.Kind, f.kind}, "subject": {&in.Subject, f.subject}, "preheader": {&in.Preheader, f.preheader},
		"images": {&in.Options.Images, f.images},
	} {
		if changed(flag) {
			*to.dst = to.src
		}
	}
	if f.html != "" && f.mjml != "" {
		return in, usage("--html and --mjml exclude each other")
	}
	for file, dst := range map[string]*string{f.html: &in.HTML, f.text: &in.Text} {
		if file == "" {
			continue
		}
		b, err := readFile(file)
		if err != nil {
			return in, err
		}
		*dst = string(b)
	}
	if f.mjml != "" {
		if in.HTML, err = compileMJML(ctx, f.mjml); err != nil {
			return in, err
		}
	}
	if f.samples != "" {
		if err := a.readJSONFile(f.samples, &in.Samples); err != nil {
			return in, err
		}
	}
	if f.noInline {
		off := false
		in.Options.InlineCSS = &off
	}
	in.Options.AutoFooter = in.Options.AutoFooter || f.footer
	return in, nil
}

// readJSONFile decodes one JSON value strictly.
func (a *app) readJSONFile(file string, v any) error {
	r := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if d.More() {
		return fmt.Errorf("%s: more than one JSON value", file)
	}
	return nil
}

// compileMJML runs the author's own compiler. relayd itself takes HTML only.
func compileMJML(ctx context.Context, file string) (string, error) {
	path, err := exec.LookPath("mjml")
	if err != nil {
		return "", errors.New("the command mjml is not installed here: npm install -g mjml, or give --html")
	}
	out, err := exec.CommandContext(ctx, path, file, "--stdout").Output() //nolint:gosec // the author's own file
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return "", fmt.Errorf("mjml %s: %s", file, strings.TrimSpace(string(e.Stderr)))
		}
		return "", fmt.Errorf("mjml %s: %w", file, err)
	}
	return string(out), nil
}

func (a *app) templatePush() *cobra.Command {
	f, publish, assets := templateFlags{}, false, []string(nil)
	c := &cobra.Command{
		Use:   "push [NAME]",
		Short: "Store a template, or the next version of one",
		Long: `Store a template from files, or change it: what is not given stays as it was. A version that is published is never
changed; a change makes the next one. Nothing is stored that would not compile: the error names part, line and column.`,
		Example: `  relayctl template push promo --subject '{{Subject}}' --html promo.html --asset logo.png --publish
  relayctl template push receipt --kind transactional --subject 'Order {{order}}' --html receipt.html
  relayctl template push footer --kind partial --html footer.html
  relayctl template push --file promo.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			in, err := f.source(cmd.Context(), a, cmd, name)
			if err != nil {
				return err
			}
			if in.Name == "" {
				return usage("template push wants a NAME")
			}
			return a.call(func(c *api.Client) error {
				for _, file := range assets {
					if err := uploadAsset(cmd.Context(), c, file); err != nil {
						return err
					}
				}
				t, err := pushTemplate(cmd.Context(), c, in)
				if err == nil && publish {
					t, err = c.PublishTemplate(cmd.Context(), t.Name, t.Version)
				}
				if err != nil {
					return err
				}
				return a.print(t, templatePairs(t))
			})
		},
	}
	f.add(c)
	c.Flags().StringArrayVar(&assets, "asset", nil, "picture `file` to upload first, repeatable; the HTML shows it as src=\"asset:NAME\"")
	c.Flags().BoolVar(&publish, "publish", false, "publish the version at once")
	return c
}

func uploadAsset(ctx context.Context, c *api.Client, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := c.UploadAsset(ctx, filepath.Base(file), "application/octet-stream", f); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// pushTemplate creates a template, or changes the one that is there.
func pushTemplate(ctx context.Context, c *api.Client, in api.CreateTemplate) (api.Template, error) {
	old, err := c.Template(ctx, in.Name, 0)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusNotFound {
		return c.CreateTemplate(ctx, in)
	}
	if err != nil {
		return old, err
	}
	if in.Kind != "" && in.Kind != old.Kind {
		return old, fmt.Errorf("template %s is of kind %s: delete it first, or use another name", in.Name, old.Kind)
	}
	var p api.PatchTemplate
	for src, dst := range map[*string]**string{&in.Subject: &p.Subject, &in.Preheader: &p.Preheader, &in.HTML: &p.HTML, &in.Text: &p.Text} {
		if *src != "" {
			*dst = src
		}
	}
	if in.Variables != nil {
		p.Variables = &in.Variables
	}
	if in.Partials != nil {
		p.Partials = &in.Partials
	}
	if in.Images != nil {
		p.Images = &in.Images
	}
	if in.Samples != nil {
		p.Samples = &in.Samples
	}
	if in.Options != (api.TemplateOptions{}) {
		p.Options = &in.Options
	}
	return c.PatchTemplate(ctx, in.Name, p, api.IfMatch(old.ETag))
}
