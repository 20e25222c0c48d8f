package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"relayd/internal/api"
)

func (a *app) templateCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "template",
		Short: "Keep the templates of campaigns and messages",
		Example: `  relayctl template push promo --subject '{{Subject}}' --html promo.html --publish
  relayctl template render promo --data Subject=Hello --attribute Name=Ann`,
	})
	c.AddCommand(a.templatePush(), a.templateList(), a.templateShow(), a.templateVersions(), a.templateRender(), a.templateValidate(),
		a.templatePublish(), a.templateDelete())
	return c
}

func templatePairs(t api.Template) pairs {
	p := pairs{
		{"template", t.Name},
		{"kind", t.Kind},
		{"version", number(t.Version)},
		{"state", t.State},
		{"subject", t.Subject},
		{"variables", strings.Join(t.VariablesUsed, ", ")},
		{"updated", moment(t.UpdatedAt)},
	}
	if t.Published > 0 {
		p = append(p, [2]string{"published", number(t.Published)})
	}
	if s := t.Compiled; s != nil {
		p = append(p, [2]string{"size", fmt.Sprintf("html %d, text %d, mail about %d bytes, %d pictures in it", s.HTMLBytes, s.TextBytes, s.EstimatedMIMEBytes, s.InlineImages)})
	}
	for _, w := range t.Warnings {
		p = append(p, [2]string{"warning", warningLine(w)})
	}
	return p
}

func warningLine(w api.Warning) string {
	place := w.Part
	if w.Line > 0 {
		place += ":" + number(w.Line)
	}
	return strings.Join(strings.Fields(w.Code+" "+place+" "+w.Detail), " ")
}

func (a *app) templateList() *cobra.Command {
	limit, account := 0, ""
	c := &cobra.Command{
		Use:     "list",
		Short:   "List templates by name",
		Example: "  relayctl template list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.listTemplates(cmd.Context(), limit, func(ctx context.Context, c *api.Client, l api.List) (api.Page[api.Template], error) {
				return c.Templates(ctx, account, l)
			})
		},
	}
	limitFlag(c, &limit)
	c.Flags().StringVar(&account, "account", "", "`account`; default: the caller's own")
	return c
}

func (a *app) templateVersions() *cobra.Command {
	limit := 0
	c := &cobra.Command{
		Use:     "versions NAME",
		Short:   "List the versions of a template, the latest first",
		Example: "  relayctl template versions promo",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.listTemplates(cmd.Context(), limit, func(ctx context.Context, c *api.Client, l api.List) (api.Page[api.Template], error) {
				return c.TemplateVersions(ctx, args[0], l)
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) listTemplates(ctx context.Context, limit int, fetch func(context.Context, *api.Client, api.List) (api.Page[api.Template], error)) error {
	return a.call(func(c *api.Client) error {
		page, err := collect(ctx, limit, func(ctx context.Context, l api.List) (api.Page[api.Template], error) { return fetch(ctx, c, l) })
		if err != nil {
			return err
		}
		t := &rows{header: []string{"name", "kind", "version", "state", "published", "updated", "warnings"}, note: more(page.HasMore)}
		for _, r := range page.Data {
			t.add(r.Name, r.Kind, number(r.Version), r.State, number(r.Published), moment(r.UpdatedAt), number(len(r.Warnings)))
		}
		return a.print(page, t)
	})
}

func (a *app) templateShow() *cobra.Command {
	version, part := 0, ""
	c := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a version of a template, or one of its parts as it was written",
		Example: `  relayctl template show promo
  relayctl template show promo --version 3 --part html > promo.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				t, err := c.Template(cmd.Context(), args[0], version)
				if err != nil {
					return err
				}
				if part == "" {
					return a.print(t, templatePairs(t))
				}
				text, ok := map[string]string{"html": t.HTML, "text": t.Text, "subject": t.Subject, "preheader": t.Preheader}[part]
				if !ok {
					return usage("--part %q: want html, text, subject or preheader", part)
				}
				return a.printPart(text)
			})
		},
	}
	c.Flags().IntVar(&version, "version", 0, "`number` of the version; default: the latest")
	c.Flags().StringVar(&part, "part", "", "only this `part`: html, text, subject or preheader")
	return c
}

// printPart writes a part of a message: to a file as it is, to a terminal without what a terminal would obey.
func (a *app) printPart(text string) error {
	if a.format == "json" {
		return printJSON(a.out, text)
	}
	_, err := fmt.Fprintln(a.out, strings.TrimSuffix(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || dangerous(r) && a.terminal {
			return -1
		}
		return r
	}, text), "\n"))
	return err
}

// dataFlags are the merge data of render and validate.
type dataFlags struct {
	in               api.RenderTemplate
	data, attributes []string
}

func (f *dataFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.IntVar(&f.in.Version, "version", 0, "`number` of the version; default: the latest")
	fl.StringVar(&f.in.Sample, "sample", "", "`name` of the sample whose data is used")
	fl.StringArrayVar(&f.data, "data", nil, "variable of the campaign or message, `KEY=VALUE`, KEY=@FILE or KEY:=JSON, repeatable")
	fl.StringArrayVar(&f.attributes, "attribute", nil, "attribute of the recipient, `KEY=VALUE`, KEY=@FILE or KEY:=JSON, repeatable")
}

func (f *dataFlags) request() (in api.RenderTemplate, err error) {
	in = f.in
	if in.Data, err = mergeData("--data", f.data); err != nil {
		return in, err
	}
	in.Attributes, err = mergeData("--attribute", f.attributes)
	return in, err
}

// mergeData reads KEY=VALUE, KEY=@FILE and KEY:=JSON.
func mergeData(flag string, list []string) (map[string]any, error) {
	var out map[string]any
	for _, item := range list {
		key, text, ok := strings.Cut(item, "=")
		if !ok || key == "" || key == ":" {
			return nil, usage("%s %q is not like KEY=VALUE", flag, item)
		}
		var v any = text
		if name, isJSON := strings.CutSuffix(key, ":"); isJSON {
			key = name
			d := json.NewDecoder(strings.NewReader(text))
			d.UseNumber()
			if err := d.Decode(&v); err != nil {
				return nil, usage("%s %s: not JSON: %s", flag, key, err)
			}
		} else if file, isFile := strings.CutPrefix(text, "@"); isFile {
			b, err := readFile(file)
			if err != nil {
				return nil, err
			}
			v = string(b)
		}
		if out == nil {
			out = map[string]any{}
		}
		out[key] = v
	}
	return out, nil
}

func (a *app) templateRender() *cobra.Command {
	f, part := dataFlags{}, ""
	c := &cobra.Command{
		Use:   "render NAME",
		Short: "Show the message that a template makes, as it would be sent",
		Example: `  relayctl template render promo --sample Ann
  relayctl template render promo --data Subject=Hello --data Body=@body.html --attribute Name=Ann --part html > out.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := f.request()
			if err != nil {
				return err
			}
			return a.call(func(c *api.Client) error {
				r, err := c.RenderTemplate(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				if part != "" {
					text, ok := map[string]string{"html": r.HTML, "text": r.Text, "subject": r.Subject}[part]
					if !ok {
						return usage("--part %q: want html, text or subject", part)
					}
					return a.printPart(text)
				}
				p := pairs{{"template", r.Name}, {"version", number(r.Version)}, {"subject", r.Subject}, {"size", number(r.MIMEBytes)}, {"text", r.Text}}
				for _, one := range r.Findings {
					p = append(p, [2]string{one.Level, findingLine(one)})
				}
				return a.print(r, p)
			})
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.in.Contact, "contact", "", "for this contact: its `ID`, or email:ADDRESS")
	c.Flags().StringVar(&part, "part", "", "only this `part`: html, text or subject")
	return c
}

func findingLine(f api.Finding) string {
	place := f.Pointer
	if f.Line > 0 {
		place += ":" + number(f.Line) + ":" + number(f.Column)
	}
	line := f.ID + " " + place + " " + f.Detail
	if f.Advice != "" {
		line += ": " + f.Advice
	}
	return line
}

func (a *app) templateValidate() *cobra.Command {
	f, data := templateFlags{}, dataFlags{}
	c := &cobra.Command{
		Use:   "validate NAME",
		Short: "Check a template as large mailbox providers do, stored or from files",
		Long: `Check a stored version, or with --file, --html or --mjml a template that is not stored, with all its samples: syntax,
variables, and the rules F01 to F20 on the message that comes out. The exit code is 1 where a rule is broken whose level is
error.`,
		Example: `  relayctl template validate promo
  relayctl template validate promo --subject 'Hello {{Name}}' --html promo.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := data.request()
			if err != nil {
				return err
			}
			if f.file != "" || f.html != "" || f.mjml != "" || f.text != "" {
				source, err := f.source(cmd.Context(), a, cmd, args[0])
				if err != nil {
					return err
				}
				in.Source = &source
			}
			return a.call(func(c *api.Client) error {
				v, err := c.ValidateTemplate(cmd.Context(), args[0], in)
				if err != nil {
					return err
				}
				t := &rows{header: []string{"id", "level", "place", "sample", "detail", "advice"}}
				for _, w := range v.Warnings {
					t.add(w.Code, "warning", strings.TrimSuffix(w.Part+":"+number(w.Line), ":0"), "", w.Detail, "")
				}
				for _, one := range v.Findings {
					place := one.Pointer
					if one.Line > 0 {
						place += ":" + number(one.Line) + ":" + number(one.Column)
					}
					t.add(one.ID, one.Level, place, one.Sample, one.Detail, one.Advice)
				}
				if err := a.print(v, t); err != nil {
					return err
				}
				if !v.OK {
					return fmt.Errorf("template %s breaks rules that large providers enforce", args[0])
				}
				return nil
			})
		},
	}
	f.add(c)
	data.add(c)
	return c
}

func (a *app) templatePublish() *cobra.Command {
	version := 0
	c := &cobra.Command{
		Use:     "publish NAME",
		Short:   "Freeze a version and make it the one that is sent",
		Example: "  relayctl template publish promo --version 7",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				t, err := c.PublishTemplate(cmd.Context(), args[0], version)
				if err != nil {
					return err
				}
				return a.print(t, templatePairs(t))
			})
		},
	}
	c.Flags().IntVar(&version, "version", 0, "`number` of the version; default: the latest")
	return c
}

func (a *app) templateDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Remove a template with all its versions; campaigns that have started keep theirs",
		Example: "  relayctl template delete promo",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(func(c *api.Client) error {
				if err := c.DeleteTemplate(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.print(struct {
					Deleted string `json:"deleted"`
				}{args[0]}, pairs{{"deleted", args[0]}})
			})
		},
	}
}
