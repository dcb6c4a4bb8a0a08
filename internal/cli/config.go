package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"headwater.example/internal/localcluster"
)

// onlyFlag marks a flag that the environment and the configuration file do not set, because it means another thing in
// another command or is none of theirs.
const onlyFlag = "headwater_only_flag"

func flagOnly(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		// The only error is an unknown flag.
		_ = flags.SetAnnotation(name, onlyFlag, []string{"true"})
	}
}

// configure gives each flag of the command that was not given the value that the environment or the configuration file
// has for it.
func (a *app) configure(cmd *cobra.Command) error {
	flags := cmd.Flags()
	settings := koanf.New(".")
	path := a.global.config
	if path == "" {
		path = os.Getenv(localcluster.SettingPrefix + "CONFIG")
	}
	if path != "" {
		if err := settings.Load(file.Provider(path), yaml.Parser()); err != nil {
			return usage("configuration file %s: %w", path, settingsError(err))
		}
		known := settingNames()
		for _, key := range settings.Keys() {
			if slices.Contains(known, key) {
				continue
			}
			if meant := similar(key, known); len(meant) > 0 {
				return usage("configuration file %s: unknown key %q: did you mean %s?", path, key, strings.Join(meant, " or "))
			}
			return usage("configuration file %s: unknown key %q", path, key)
		}
	}
	fromFile := settings.All()
	// Kubernetes puts variables of the same prefix into every container beside a Service named headwater-…, so a
	// variable that names no flag is none of ours.
	err := settings.Load(env.Provider(".", env.Opt{Prefix: localcluster.SettingPrefix, TransformFunc: func(name, value string) (string, any) {
		key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, localcluster.SettingPrefix)), "_", "-")
		// An empty variable is one that is not set, as shells and manifests have it.
		if flag := flags.Lookup(key); flag == nil || !settable(flag) || value == "" {
			return "", nil
		}
		return key, value
	}}), nil)
	if err != nil {
		return usage("environment: %w", err)
	}
	fromEnv := settings.All()
	if err := settings.Load(posflag.Provider(flags, ".", settings), nil); err != nil {
		return usage("flags: %w", err)
	}
	var failed error
	a.settled = map[string]bool{}
	flags.VisitAll(func(flag *pflag.Flag) {
		value, ok := fromEnv[flag.Name]
		if flag.Changed || !ok || failed != nil || !settable(flag) {
			return
		}
		a.settled[flag.Name] = true
		if err := flags.Set(flag.Name, settingText(value)); err != nil {
			origin := "environment " + localcluster.SettingPrefix + strings.ReplaceAll(strings.ToUpper(flag.Name), "-", "_")
			if old, ok := fromFile[flag.Name]; ok && settingText(old) == settingText(value) {
				origin = "configuration file " + path
			}
			failed = usage("%s: %w", origin, valueError(err))
		}
	})
	return failed
}

// settingsError says why a configuration file can not be read, without its name, which its reader knows.
func settingsError(err error) error {
	var at *fs.PathError
	switch {
	case errors.As(err, &at):
		return at.Err
	case strings.Contains(err.Error(), "cannot unmarshal"):
		return errors.New("it is no map of settings, one \"key: value\" a line")
	}
	return err
}

func settable(flag *pflag.Flag) bool {
	return flag.Name != "help" && flag.Name != "version" && flag.Name != "config" && flag.Annotations[onlyFlag] == nil
}

// settingNames returns the names of all flags that a configuration file may set, of any command of both programs: they
// share one file.
func settingNames() []string {
	var known []string
	add := func(flag *pflag.Flag) {
		if settable(flag) && !slices.Contains(known, flag.Name) {
			known = append(known, flag.Name)
		}
	}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(add)
		cmd.PersistentFlags().VisitAll(add)
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit((&app{program: "coord"}).coord())
	return known
}

// settingText is a setting as a flag is written: lists with commas.
func settingText(value any) string {
	switch value := value.(type) {
	case []any:
		words := make([]string, len(value))
		for i, v := range value {
			words[i] = settingText(v)
		}
		return strings.Join(words, ",")
	case map[string]any:
		words := make([]string, 0, len(value))
		for k, v := range value {
			words = append(words, k+"="+settingText(v))
		}
		sort.Strings(words)
		return strings.Join(words, ",")
	}
	return fmt.Sprint(value)
}
