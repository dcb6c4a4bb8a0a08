package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// linked is the version that the linker sets: a variable that is initialized here would win over it.
var linked string

// programVersion is the program's version: what the linker set; without, the module's.
var programVersion = func() string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}()

// Streams are where a program reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is one invocation.
type app struct {
	Streams
	program string
	global  globalFlags
	settled map[string]bool // flags that the environment or the configuration file set, not the command line
}

type globalFlags struct {
	config    string
	output    string
	logFormat string
	logLevel  string
}

// Coord runs the program coord and returns its exit code.
func Coord(args []string, streams Streams) int {
	a := &app{Streams: streams, program: "coord"}
	return a.run(a.tree(), args)
}

// Worker runs the program worker and returns its exit code.
func Worker(args []string, streams Streams) int {
	a := &app{Streams: streams, program: "worker"}
	return a.run(a.tree(), args)
}

// tree is the command tree of the program.
func (a *app) tree() *cobra.Command {
	var root *cobra.Command
	if a.program == "worker" {
		root = a.worker()
	} else {
		root = a.coord()
	}
	lay(root)
	return root
}

// coord is the command tree of coord. It has every setting of both programs, since a worker runs in it as well.
func (a *app) coord() *cobra.Command {
	root := a.root("Distributed grouped-query attention: the coordinator and its client",
		`  coord submit job.safetensors --local 3 --out context.safetensors
  coord submit job.safetensors --coordinator 10.0.0.1 --out context.safetensors
  coord jobs list`)
	worker := group("worker", "Run a worker", "  coord worker serve", a.serveWorker())
	worker.Hidden = true
	root.AddCommand(a.serveCoordinator(), a.relay(), a.submit(), a.jobs(), a.sessions(), a.status(), a.events(), a.top(), a.health(), a.drain(), a.rebalance(), a.plan(), a.size(), a.explain(), a.local(), a.learn(), a.bench(), a.diff(), a.check(), a.certs(), a.tenants(), a.version(true), worker)
	return root
}

// worker is the command tree of worker.
func (a *app) worker() *cobra.Command {
	root := a.root("Distributed grouped-query attention: a worker, which holds keys and values and attends over them",
		`  worker serve --join 127.0.0.1:7610`)
	root.AddCommand(a.serveWorker(), a.version(false))
	return root
}

// root makes a program's top command with what all commands share.
func (a *app) root(short, example string) *cobra.Command {
	root := &cobra.Command{
		Use:     a.program,
		Short:   short,
		Long:    short + ".\n\nSettings are flags. A setting that is not about one invocation alone (as --out is) can also stand in HEADWATER_<FLAG> in the\nenvironment or in the configuration file (YAML, --config). Flags win over the environment, the environment over the file.\n\n" + exitHelp,
		Example: example,
		Version: programVersion,
		// Errors are printed once, by run.
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              onlySubcommands,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.configure(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.global.config, "config", "", "configuration `file` (YAML): keys are the flags' names")
	choice(root, flags, &a.global.output, "output", "table", "how results are printed; wide is a table with all there is", "table", "wide", "json")
	flags.Lookup("output").Shorthand = "o"
	choice(root, flags, &a.global.logFormat, "log-format", "text", "how logs are printed", "text", "json")
	choice(root, flags, &a.global.logLevel, "log-level", "info", "least level that is logged", "debug", "info", "warn", "error")
	root.SetFlagErrorFunc(flagError)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.AddCommand(a.completion())
	return root
}

// run executes the command line until it is done or a signal comes; see signals.
func (a *app) run(root *cobra.Command, args []string) int {
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			cmd.Example = fmt.Sprintf("  %s help completion", a.program)
		}
	}
	ctx, stop := signals()
	defer stop()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, syscall.EPIPE) { // who reads has read enough
		return exitFailed
	}
	message, code := line(a.program, err), exitCode(err)
	if code == exitUsage {
		message += fmt.Sprintf(" (see %s --help)", cmd.CommandPath())
	}
	a.note("%s\n", message)
	return code
}

// group makes a command that only has subcommands.
func group(use, short, example string, subcommands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: onlySubcommands, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(subcommands...)
	return cmd
}

// onlySubcommands refuses an argument that is no command, and says which one may be meant.
func onlySubcommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil // its help
	}
	cmd.SuggestionsMinimumDistance = farthestTypo
	if meant := cmd.SuggestionsFor(args[0]); len(meant) > 0 {
		return usage("unknown command %q: did you mean %s?", args[0], strings.Join(meant, " or "))
	}
	return usage("unknown command %q", args[0])
}

// farthestTypo is how many letters a word may differ by from what is meant.
const farthestTypo = 2

// flagError makes a wrong flag a wrong use, and says which one may be meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		if strings.Contains(err.Error(), `"-o, --output"`) && cmd.Flags().Lookup("out") != nil {
			return usage("%w; the file of a result is named with --out", err)
		}
		return usageError{valueError(err)}
	}
	var names []string
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden {
			names = append(names, flag.Name)
		}
	})
	if meant := similar(unknown.GetSpecifiedName(), names); len(meant) > 0 {
		return usage("%w: did you mean --%s?", err, strings.Join(meant, " or --"))
	}
	return usageError{err}
}

// similar returns the names that a mistyped one may stand for. Cobra measures the distance of words for commands, so names are
// looked up as commands.
func similar(typed string, names []string) []string {
	words := &cobra.Command{SuggestionsMinimumDistance: farthestTypo}
	for _, name := range names {
		words.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	return words.SuggestionsFor(typed)
}

// What Go's libraries say of a flag's value that they can not read, and what to write instead.
var wanted = []struct {
	said *regexp.Regexp
	want string
}{
	{regexp.MustCompile(`strconv\.Parse\w+: parsing ".*": value out of range`), "it is too large"},
	{regexp.MustCompile(`strconv\.ParseInt: parsing ".*": .*`), "want a whole number"},
	{regexp.MustCompile(`strconv\.ParseUint: parsing ".*": .*`), "want a whole number, 0 or more"},
	{regexp.MustCompile(`strconv\.ParseFloat: parsing ".*": .*`), "want a number"},
	{regexp.MustCompile(`strconv\.ParseBool: parsing ".*": .*`), "want true or false"},
	{regexp.MustCompile(`time: (?:invalid duration|missing unit in duration|unknown unit .* in duration) ".*"`), "want a duration with its unit, such as 30s or 5m"},
}

// valueError says in plain words why a flag does not take a value.
func valueError(err error) error {
	for _, w := range wanted {
		if text := w.said.ReplaceAllLiteralString(err.Error(), w.want); text != err.Error() {
			return errors.New(text)
		}
	}
	return err
}

// helpWidth is the width of help texts: that of the narrowest terminal that is common.
const helpWidth = 80

// lay makes the help of a command and of all below it fit helpWidth.
func lay(cmd *cobra.Command) {
	cmd.Long = reflow(cmd.Long)
	for _, sub := range cmd.Commands() {
		lay(sub)
	}
	if !cmd.HasParent() {
		cobra.AddTemplateFunc("wrapped", func(flags *pflag.FlagSet) string { return flags.FlagUsagesWrapped(helpWidth) })
		cmd.SetUsageTemplate(strings.NewReplacer(".LocalFlags.FlagUsages", "wrapped .LocalFlags", ".InheritedFlags.FlagUsages", "wrapped .InheritedFlags").Replace(cmd.UsageTemplate()))
	}
}

// reflow breaks paragraphs anew.
func reflow(long string) string {
	paragraphs := strings.Split(long, "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = text.WrapSoft(strings.Join(strings.Fields(p), " "), helpWidth)
		lines := strings.Split(paragraphs[i], "\n")
		for j := range lines {
			lines[j] = strings.TrimRight(lines[j], " ")
		}
		paragraphs[i] = strings.Join(lines, "\n")
	}
	return strings.Join(paragraphs, "\n\n")
}

// exactly demands named arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("argument %s is missing", names[len(args)])
		case len(args) > len(names):
			return usage("argument %q is one too many", args[len(names)])
		}
		for i, arg := range args {
			if arg == "" {
				return usage("argument %s is empty", names[i])
			}
		}
		return nil
	}
}

// choiceValue is a flag that takes one of a few words.
type choiceValue struct {
	to      *string
	allowed []string
}

func (v choiceValue) String() string {
	if v.to == nil {
		return ""
	}
	return *v.to
}
func (v choiceValue) Type() string { return "word" }
func (v choiceValue) Set(s string) error {
	for _, word := range v.allowed {
		if s == word {
			*v.to = s
			return nil
		}
	}
	return fmt.Errorf("want one of %v", v.allowed)
}

// choice adds a flag that takes one of a few words, with their completion.
func choice(cmd *cobra.Command, flags *pflag.FlagSet, to *string, name, value, help string, allowed ...string) {
	*to = value
	flags.Var(choiceValue{to, allowed}, name, fmt.Sprintf("%s: one of %v", help, allowed))
	// The only error is a second registration of the same flag.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the script that completes commands and flags in a shell",
		Example: fmt.Sprintf(`  source <(%[1]s completion bash)
  %[1]s completion zsh > "${fpath[1]}/_%[1]s"`, a.program),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      exactly("SHELL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.Out)
			}
			return usage("unknown shell %q: want bash, zsh, fish or powershell", args[0])
		},
	}
}

// terminal tells whether a stream is one.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
